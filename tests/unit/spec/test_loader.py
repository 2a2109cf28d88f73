"""Reading of whole specs: required fields, expansion, diagnostics of every kind at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mloc_prefect.diagnostics.diagnostic import Diagnostic
from mloc_prefect.errors import MlocError, SpecError
from mloc_prefect.spec.loader import load_spec, load_workflow, read_spec
from mloc_prefect.spec.workflow import Workflow
from tests.support.mloc_specs import spec_files

BASE = """\
apiVersion: mloc/v1
kind: InferenceTask
metadata:
  name: demo
spec:
  taskType: inference
  resources:
    replicas: 1
    hardware: {cpu: "4", memory: 8Gi}
  data: {type: list, items: [hello]}
"""

STAGES = """\
  inference: {temperature: 0.7, max_tokens: 16}
  stages:
    - name: first
      spec:
        inference: {temperature: 0.1}
    - spec:
        data:
          items: ["${first.result.items[0].output}"]
    - id: third
      dependsOn: [first, " ", 7]
"""


def heads(found: tuple[Diagnostic, ...]) -> list[str]:
    return [f"{d.line}:{d.column} {d.code}" for d in found]


def workflow(text: str, **options: Any) -> Workflow:
    result, found = read_spec(text, "f.yaml", **options)
    assert not [d for d in found if d.severity == "error"], [str(d) for d in found]
    assert result is not None
    return result


# Fields that MLOC's own specs set and that have no effect here: said, and no error.
IGNORED = {
    "ppo_training_llama_1b.yaml": ["71:27 ignored-value"],
    "ppo_training_mistral.yaml": ["71:27 ignored-value"],
    "sft_llama_3b.yaml": ["36:22 ignored-value"],
}


@pytest.mark.parametrize("file", spec_files())
def test_real_specs_are_read(file: Path) -> None:
    found = read_spec(file.read_bytes(), file.name)[1]  # what they expand to is checked in test_facts.py
    assert heads(found) == IGNORED.get(file.name, [])
    assert {d.severity for d in found} <= {"warning"}


def test_a_valid_spec_says_nothing() -> None:
    result, found = read_spec(BASE)
    assert found == ()
    assert result is not None
    assert (result.name, result.kind, [n.name for n in result.nodes]) == ("demo", "single", ["demo"])
    assert result.nodes[0].depends_on is None


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n...\n"])
def test_an_empty_document_misses_its_first_field(text: str) -> None:
    result, found = read_spec(text)
    assert result is None
    assert [d.message for d in found] == ["Missing required field: apiVersion"]


def test_a_document_that_is_no_mapping_misses_its_first_field() -> None:
    for text in ("- a\n- b\n", "hello", "42"):
        assert [d.message for d in read_spec(text)[1]] == ["Missing required field: apiVersion"]


def test_all_missing_fields_are_reported_in_order_with_the_original_texts() -> None:
    _, found = read_spec("{}")
    fields = [
        "apiVersion",
        "kind",
        "metadata.name",
        "spec.taskType",
        "spec.resources.replicas",
        "spec.resources.hardware.cpu",
        "spec.resources.hardware.memory",
    ]
    assert sorted(d.message for d in found) == sorted(f"Missing required field: {name}" for name in fields)
    assert {d.code for d in found} == {"missing-field"}


def test_a_missing_field_is_shown_at_its_nearest_parent() -> None:
    text = BASE.replace('{cpu: "4", memory: 8Gi}', "{cpus: 4, memory: 8Gi}").replace("replicas: 1\n", "replica: 1\n")
    _, found = read_spec(text)
    missing = [d for d in found if d.code == "missing-field"]
    assert heads(tuple(missing)) == ["7:3 missing-field", "9:5 missing-field"]
    assert [d.path for d in missing] == ["spec.resources", "spec.resources.hardware"]
    assert missing[0].suggestion == "rename 'replica' to 'replicas'"


def test_only_presence_of_required_fields_counts() -> None:
    text = BASE.replace("mloc/v1", "null").replace('cpu: "4", memory: 8Gi', "cpu: null, memory: null")
    assert read_spec(text)[1] == ()


@pytest.mark.parametrize(
    "gpu, messages",
    [
        ("{}", []),
        ("0", []),
        ("null", []),
        ("{count: 0, type: any}", []),
        ("{count: 1}", ["Missing spec.resources.hardware.gpu.type"]),
        ("{type: any}", ["Missing spec.resources.hardware.gpu.count"]),
        ("{count: null, type: any}", ["Missing spec.resources.hardware.gpu.count"]),
        ("{count: two, type: any}", ["count must be a whole number, at least 0"]),
        ("all", ["gpu must be a mapping", "Missing spec.resources.hardware.gpu.count"]),
    ],
)
def test_gpu_blocks(gpu: str, messages: list[str]) -> None:
    _, found = read_spec(BASE.replace("memory: 8Gi", f"memory: 8Gi, gpu: {gpu}"))
    assert [d.message for d in found] == messages


@pytest.mark.parametrize(
    "value, code",
    [
        ("16Gi", None),
        ("16 gib", None),
        ("1024", None),
        ("12GB", None),
        ("1.5Gi", "ignored-value"),
        ("lots", "ignored-value"),
    ],
)
def test_memory_that_the_scheduler_cannot_read_is_a_warning(value: str, code: str | None) -> None:
    _, found = read_spec(BASE.replace("8Gi", value))
    assert [(d.code, d.severity) for d in found] == ([(code, "warning")] if code else [])


def test_cpu_texts_of_the_original_are_accepted() -> None:
    for cpu in ("4 cores", "16vCPU", " 4 ", 8):
        assert read_spec(BASE.replace('"4"', json.dumps(cpu)))[1] == ()


@pytest.mark.parametrize(("cpu", "cores"), [("500m", "500"), ("4.5", "45"), ("2-4", "24")])
def test_cpu_texts_that_mean_something_else_to_the_scheduler_are_a_warning(cpu: str, cores: str) -> None:
    (one,) = read_spec(BASE.replace('"4"', json.dumps(cpu)))[1]
    assert (one.code, one.severity) == ("joined-digits", "warning")
    assert one.message == f"cpu is read as {cores} cores: all its digits, as in MLOC"


@pytest.mark.parametrize(
    "more, path, suggestion",
    [
        ("  inference: {temprature: 1}\n", "spec.inference.temprature", "did you mean 'temperature'?"),
        ("  inference: {maxTokens: 1}\n", "spec.inference.maxTokens", "did you mean 'max_tokens'?"),
        ("  top_p: 0.5\n", "spec.top_p", "'top_p' is a field of spec.inference: move it there"),
        ("  paralel: {}\n", "spec.paralel", "did you mean 'parallel'?"),
        (
            "  output: {destination: {timeoutSecs: 3}}\n",
            "spec.output.destination.timeoutSecs",
            "did you mean 'timeoutSec'?",
        ),
        ("  model: {adapters: [{nmae: x}]}\n", "spec.model.adapters[0].nmae", "did you mean 'name'?"),
        ("  depends_on: [a]\n", "spec.depends_on", "did you mean 'dependsOn'?"),
        ("  stage: []\n", "spec.stage", "did you mean 'stages'?"),
        ("  zzz: 1\n", "spec.zzz", None),
    ],
)
def test_unknown_fields_are_warnings_with_advice(more: str, path: str, suggestion: str | None) -> None:
    _, found = read_spec(BASE + more)
    unknown = [d for d in found if d.code == "unknown-field"]
    assert [(d.severity, d.path, d.suggestion) for d in unknown] == [("warning", path, suggestion)]


@pytest.mark.parametrize(
    "more",
    [
        "  sloSeconds: 3\n  _upstreamResults: {}\n  shard: {index: 0}\n",
        "  model: {config: {any: 1}, source: {type: hub, identifier: m, revision: 1.0, trust_remote_code: false}}\n",
        "  output: {destination: {headers: {X-Any: 1}}}\n",
        "  resources: &r {estimatedLoad: 1, replicas: 1, hardware: {cpu: 1, memory: 1}}\n",
    ],
)
def test_known_but_unused_fields_are_accepted_silently(more: str) -> None:
    text = BASE + more
    if "resources" in more:
        text = text.replace('  resources:\n    replicas: 1\n    hardware: {cpu: "4", memory: 8Gi}\n', "")
    assert read_spec(text)[1] == ()


def test_task_types_are_case_sensitive_and_unknown_ones_run_as_inference() -> None:
    result, found = read_spec(BASE.replace("taskType: inference", "taskType: Inference"))
    assert result is not None
    assert result.nodes[0].task_type == "Inference"
    assert [(d.severity, d.code, d.suggestion) for d in found] == [
        ("warning", "unknown-task-type", "did you mean 'inference'?")
    ]
    for known in ("inference-cpu", "inference-gpu", "default", "vllm"):
        assert read_spec(BASE.replace("taskType: inference", f"taskType: {known}"))[1] == ()
    _, found = read_spec(BASE.replace("taskType: inference", "taskType: [inference]"))
    assert [d.code for d in found] == ["invalid-type"]


def test_an_unknown_field_at_the_top_or_a_slip_in_metadata() -> None:
    text = BASE.replace("  name: demo\n", "  name: demo\n  anotations: {}\n  team: mine\n") + "specs: 1\n"
    _, found = read_spec(text)
    assert heads(found) == ["5:3 unknown-field", "13:1 unknown-field"]


@pytest.mark.parametrize(
    ("name", "codes"), [("null", ["empty-name"]), ("' '", ["empty-name"]), ("[a]", ["invalid-type"]), ("7", [])]
)
def test_names(name: str, codes: list[str]) -> None:
    _, found = read_spec(BASE.replace("name: demo", f"name: {name}"))
    assert [d.code for d in found] == codes


def test_five_mistakes_give_five_diagnostics_in_order() -> None:
    text = BASE.replace("replicas: 1", "replicas: two").replace("type: list", "type: lst") + (
        "  inference: {temperature: hot, max_tokens: -5, topp: 1}\n"
    )
    _, found = read_spec(text, "task.yaml")
    assert heads(found) == [
        "8:15 ignored-value",
        "10:16 unsupported-data-type",
        "11:28 invalid-type",
        "11:45 out-of-range",
        "11:49 unknown-field",
    ]
    assert str(found[2]).splitlines() == [
        "task.yaml:11:28: error[invalid-type]: temperature must be a number, at least 0",
        '    at spec.inference.temperature, found "hot"',
    ]


def test_load_raises_with_every_error_and_strict_counts_warnings() -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(BASE + "  inference: {temperature: hot, top_p: 3, zzz: 1}\n")
    assert [d.code for d in caught.value.diagnostics] == ["invalid-type", "out-of-range"]
    assert caught.value.exit_code == 2
    only_warning = BASE + "  zzz: 1\n"
    assert [d.code for d in load_spec(only_warning).warnings] == ["unknown-field"]
    with pytest.raises(SpecError, match="unknown-field"):
        load_spec(only_warning, strict=True)


def test_load_workflow_takes_a_path_or_a_text(tmp_path: Path) -> None:
    file = tmp_path / "task.yaml"
    file.write_bytes(("\ufeff" + BASE.replace("\n", "\r\n")).encode())
    assert load_workflow(file).name == "demo"
    assert load_workflow(str(file)).source.file == str(file)
    assert load_workflow(BASE).source.file == "<text>"
    with pytest.raises(MlocError, match=r"cannot read .*absent\.yaml: No such file"):
        load_workflow(tmp_path / "absent.yaml")
    with pytest.raises(SpecError, match="Missing required field: apiVersion"):
        load_workflow("{}")


def test_diagnostics_of_later_phases_point_into_the_text() -> None:
    result = workflow(BASE + STAGES)
    second = result.nodes[1]
    own = result.diagnostic(("spec", "data", "items", 0), severity="error", code="x", message="m", node=second)
    base = result.diagnostic(("spec", "data", "type"), severity="error", code="x", message="m", node=second)
    assert (own.line, own.column, own.path) == (18, 19, "spec.stages[1].spec.data.items[0]")
    assert (base.line, base.column, base.path) == (10, 16, "spec.data.type")
    key = result.diagnostic(("spec", "stages"), severity="error", code="x", message="m", at_key=True)
    assert (key.line, key.column) == (12, 3)
