"""`Workflow` -> `WorkflowPlan`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from typing import Any

import pytest

from mloc_prefect.errors import SpecError
from mloc_prefect.plan import check, plan_workflow
from mloc_prefect.spec.loader import load_spec

SPEC = """\
apiVersion: mloc/v1
kind: InferenceTask
metadata: {name: w, owner: me}
spec:
  taskType: inference
  enforce_cpu: true
  timeoutSec: "90"
  priority: 3
  resources: {replicas: 1, hardware: {cpu: "8", memory: 16Gi, gpu: {count: 2, type: A100, memory: 40Gi}}}
  model: {source: {identifier: some/model}}
  parallel: {enabled: "yes", max_shards: 3}
  data: {type: list, items: [a]}
"""


def test_everything_is_decided() -> None:
    plan = plan_workflow(load_spec(SPEC, "w.yaml"))
    (stage,) = plan.stages
    assert (plan.name, plan.kind, plan.file, plan.warnings) == ("w", "single", "w.yaml", ())
    assert plan.source_sha256 == hashlib.sha256(SPEC.encode()).hexdigest()
    assert (stage.key, stage.node, stage.name, stage.task_type) == ("w", None, "w", "inference")
    assert (stage.model, stage.timeout_seconds, stage.priority, stage.max_shards) == ("some/model", 90.0, 3, 3)
    assert stage.executor.path.endswith("executors.transformers:TransformersExecutor")
    assert str(stage.resources) == "8 cpu, 16 GiB, 2 gpu (a100, 40 GiB each), no gpu used"
    assert stage.notes == ("data-parallel: up to 3 shards when that many machines are free",)


def test_effective_is_the_document_untouched() -> None:
    effective = plan_workflow(load_spec(SPEC)).stages[0].effective
    assert effective["spec"]["timeoutSec"] == "90"
    assert effective["spec"]["parallel"] == {"enabled": "yes", "max_shards": 3}
    assert "shuffle" not in effective["spec"]["data"]


@pytest.mark.parametrize(
    ("change", "shards"),
    [
        (('enabled: "yes", max_shards: 3', "enabled: true"), 8),
        (('enabled: "yes"', "enabled: no"), 1),
        (("taskType: inference", "taskType: inference-cpu"), 1),
        (("max_shards: 3", "max_shards: lots"), 8),
    ],
)
def test_shards(change: tuple[str, str], shards: int) -> None:
    assert plan_workflow(load_spec(SPEC.replace(*change))).stages[0].max_shards == shards


def test_one_prompt_is_not_sharded() -> None:
    template = "{type: graph_template, template: {name: x, text: '{col0_value}', columns: [{expr: a.result}]}}"
    nodes = "[{name: a, spec: {data: {type: list, items: [b], template: null}}}, {name: b, dependsOn: [a]}]"
    text = SPEC.replace("{type: list, items: [a]}", template) + f"  graph: {{nodes: {nodes}}}\n"
    plan, found = check(text)
    assert plan is not None
    assert not found
    assert {stage.key: stage.max_shards for stage in plan.stages} == {"a": 3, "b": 1}


def test_plans_are_equal_and_frozen() -> None:
    plan = plan_workflow(load_spec(SPEC))
    assert plan == plan_workflow(load_spec(SPEC))
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.name = "other"  # type: ignore[misc]
    with pytest.raises(KeyError):
        plan.stage("other")


def test_warnings_stay_or_become_errors() -> None:
    text = SPEC + "  colour: blue\n"
    plan, _ = check(text, "w.yaml")
    assert plan is not None
    assert [d.code for d in plan.warnings] == ["unknown-field"]
    assert plan_workflow(load_spec(text, "w.yaml")) == plan
    assert check(text, "w.yaml", strict=True)[0] is None
    with pytest.raises(SpecError) as caught:
        plan_workflow(load_spec(text, "w.yaml"), strict=True)
    assert caught.value.diagnostics == check(text, "w.yaml", strict=True)[1]


def test_faults_of_reading_and_planning_come_together_and_sorted() -> None:
    text = SPEC.replace('cpu: "8"', 'cpus: "8"') + '  inference: {top_p: 2, system_prompt: "${a.b}"}\n'
    plan, found = check(text)
    assert plan is None
    assert [d.code for d in found] == ["missing-field", "unknown-field", "out-of-range", "unknown-stage"]
    assert [d.line for d in found] == sorted(d.line for d in found)


def test_text_that_is_no_document() -> None:
    for text in ("", "[1", b"\xff", "- a"):
        plan, found = check(text)
        assert plan is None
        assert len(found) == 1


def test_max_bytes() -> None:
    assert [d.code for d in check("x" * 2000, max_bytes=1999)[1]] == ["too-large"]


def test_overrides() -> None:
    plan, _ = check(SPEC, overrides=["spec.model.source.identifier=other/model"])
    assert plan is not None
    assert plan.stages[0].model == "other/model"


def test_an_unknown_task_type_is_planned_as_inference() -> None:
    plan, found = check(SPEC.replace("taskType: inference", "taskType: chatting"))
    assert plan is not None
    assert [d.code for d in found] == ["unknown-task-type"]
    assert plan.stages[0].task_type == "chatting"
    assert plan.stages[0].executor.extra == "transformers"


def test_planning_imports_nothing_heavy() -> None:
    code = (
        "import sys, json; from mloc_prefect.plan import check; check(sys.stdin.read());"
        "print(json.dumps([m for m in ('prefect', 'torch', 'redis', 'fastapi', 'rich') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=SPEC, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def _data(text: str) -> dict[str, Any]:
    return {"data": {"type": "list", "items": [text]}}


def _with_stages(stages: list[dict[str, Any]]) -> str:
    return SPEC.replace("enforce_cpu: true", f"stages: {json.dumps(stages)}")


def test_long_chains_with_many_references_stay_cheap() -> None:
    """400 stages with 50 references each to far ancestors: each needs the ancestors only once."""
    text = " ".join(f"${{n{i}.result}}" for i in range(50))
    stages = [{"name": f"n{i}", "spec": _data(text if i >= 50 else "x")} for i in range(400)]
    plan, found = check(_with_stages(stages))
    assert found == ()
    assert plan is not None
    assert sum(len(stage.references) for stage in plan.stages) == 350 * 50


def test_a_fault_of_the_base_counts_once() -> None:
    text = SPEC.replace("items: [a]", 'items: ["${no.result}"]') + f"  stages: {json.dumps([{}] * 600)}\n"
    assert [d.code for d in check(text)[1]] == ["unknown-stage"]


def test_the_number_of_findings_is_bounded() -> None:
    stages = [{"name": f"n{i}", "spec": _data(f"${{UPPER_{i}}}")} for i in range(600)]
    plan, found = check(_with_stages(stages))
    assert plan is None
    assert len(found) == 502
    assert [d.code for d in found if d.severity == "error"] == ["too-many-findings"]
