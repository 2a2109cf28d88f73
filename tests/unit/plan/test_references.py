"""References are judged before anything runs. [decisions: References]"""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from mloc_prefect.diagnostics.diagnostic import Diagnostic
from mloc_prefect.plan import Reference, check

UUID = "3f2b8c1e-0d4a-4f6b-9c7d-1a2b3c4d5e6f"


def _text(kind: str, **more: Any) -> str:
    resources = {"replicas": 1, "hardware": {"cpu": "1", "memory": "1Gi"}}
    document = {
        "apiVersion": "mloc/v1",
        "kind": "Task",
        "metadata": {"name": "w"},
        "spec": {"taskType": kind, "resources": resources, **more},
    }
    return yaml.safe_dump(document, sort_keys=False)


def _node(name: str, data: Any, after: list[str] | None = None, **more: Any) -> dict[str, Any]:
    return {"name": name, **({} if after is None else {"dependsOn": after}), "spec": {"data": data, **more}}


def _graph(*nodes: dict[str, Any]) -> str:
    return _text("echo", graph={"nodes": list(nodes)})


def _codes(found: tuple[Diagnostic, ...]) -> list[str]:
    return [d.code for d in found]


def test_references_are_kept_in_the_plan() -> None:
    text = _graph(_node("a", 1), _node("b", {"x": ["${a.result.echo.data}", "no", "<${ a.result.n }>"]}, ["a"]))
    plan, found = check(text)
    assert plan is not None
    assert not found
    assert plan.stage("b").references == (
        Reference("data.x[0]", "a.result.echo.data", "a", whole=True),
        Reference("data.x[2]", "a.result.n", "a", whole=False),
    )


def test_an_ancestor_far_above_is_fine() -> None:
    text = _graph(_node("a", 1), _node("b", 2, ["a"]), _node("c", "${a.result.echo.data}", ["b"]))
    plan, found = check(text)
    assert plan is not None
    assert not found
    assert plan.stage("c").waits_for == ()


def test_what_is_not_upstream_is_waited_for() -> None:
    text = _graph(_node("a", 1), _node("b", "${a.result.x} ${a.result.y}"), _node("c", 3, ["b"]))
    plan, found = check(text)
    assert plan is not None
    assert _codes(found) == ["not-upstream"] * 2
    assert (plan.stage("b").depends_on, plan.stage("b").waits_for, plan.stage("b").upstream) == ((), ("a",), ("a",))
    assert plan.to_dict()["tasks"][1]["depends_on"] == []
    assert plan.warnings == found


def test_execution_edges_may_not_close_a_cycle() -> None:
    _, found = check(_graph(_node("a", "${c.result}"), _node("b", "${a.result}"), _node("c", 3, ["b"])))
    assert _codes(found) == ["not-upstream", "reference-cycle"]


def test_the_id_of_a_task_needs_no_edge() -> None:
    plan, found = check(_graph(_node("a", "${b.task_id} ${a.task_id}"), _node("b", 1, ["a"])))
    assert plan is not None
    assert not found
    assert plan.stage("a").waits_for == ()


def test_a_stage_called_env_comes_before_the_root() -> None:
    plan, found = check(_graph(_node("env", 1), _node("b", "${env.result.echo.data}", ["env"])))
    assert plan is not None
    assert not found
    assert plan.stage("b").references[0].stage == "env"


def test_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    text = _text("echo", data=["${env.HOME}", "${param.limit}"])
    assert _codes(check(text)[1]) == ["env-not-allowed", "unknown-parameter"]
    plan, found = check(text, allowed_env={"HOME"}, params={"limit"})
    assert plan is not None
    assert not found
    assert [(r.expression, r.stage) for r in plan.stages[0].references] == [("env.HOME", None), ("param.limit", None)]
    monkeypatch.setenv("MLOC_ALLOWED_ENV", "PATH, HOME")
    (unknown,) = check(text)[1]
    assert (unknown.code, unknown.suggestion) == (
        "unknown-parameter",
        'give it: --param limit=VALUE (over HTTP: "parameters")',
    )
    (near,) = check(text, params={"limits"})[1]
    assert near.suggestion == "did you mean 'limits'?"


def test_bare_roots_are_single_words() -> None:
    assert _codes(check(_text("echo", data="${env} ${param}"))[1]) == ["literal-placeholder"] * 2


def test_the_whole_of_a_stage() -> None:
    plan, found = check(_graph(_node("a", 1), _node("b", "${a}", ["a"])))
    assert plan is not None
    assert not found
    assert plan.stage("b").references == (Reference("data", "a", "a", whole=True),)


@pytest.mark.parametrize("text", ["$${user.name}", "${UPPER} $${file%.txt}", "on: $${{ github.ref }}", "$${env.X}"])
def test_a_doubled_dollar_writes_the_text(text: str) -> None:
    plan, found = check(_text("echo", data={"x": text}))
    assert plan is not None
    assert {d.severity for d in found} <= {"warning"}
    assert plan.stages[0].references == ()


def test_the_help_names_the_doubled_dollar() -> None:
    (found,) = check(_text("echo", data={"x": "Hello ${user.name}"}))[1]
    help_ = "a single task has no stages to read from; for the text itself, write $${user.name}"
    assert (found.code, found.suggestion) == ("unknown-stage", help_)


def test_a_dollar_before_a_reference_is_one() -> None:
    plan, _ = check(_graph(_node("a", 1), _node("b", {"x": "$${a.result.n}"}, ["a"])))
    assert plan is not None
    assert [r.expression for r in plan.stage("b").references] == ["a.result.n"]


def test_literals_near_a_stage_name_say_so() -> None:
    plan, found = check(_graph(_node("draft", 1), _node("b", "${drafts}", ["draft"])))
    assert plan is not None
    assert [d.suggestion for d in found] == ["did you mean 'draft'?"]
    assert plan.stage("b").references == ()


def test_required_places_are_marked() -> None:
    load = {"checkpoint": {"load": {"type": "http", "url": "${a.result.url}", "headers": {"X": "${a.task_id}"}}}}
    first = {"name": "a", "spec": {}}
    text = _text("sft", data={"prompts": ["x"]}, stages=[first, {"name": "b", "spec": load}])
    plan, found = check(text)
    assert plan is not None
    assert not found
    assert {r.where: r.required for r in plan.stage("b").references} == {
        "checkpoint.load.url": True,
        "checkpoint.load.headers.X": True,
    }


def _briefing(*columns: dict[str, Any]) -> dict[str, Any]:
    template = {"name": "own", "text": "{col0_value}", "columns": list(columns)}
    return {"data": {"items": None, "type": "graph_template", "template": template}}


def _inference(*nodes: dict[str, Any]) -> str:
    return _text("inference", data={"type": "list", "items": ["x"]}, graph={"nodes": list(nodes)})


def test_columns_are_references() -> None:
    columns = [{"node": "a", "path": "result.items[0].output"}, {"expr": "a.result.n", "default": 0}]
    text = _inference({"name": "a"}, {"name": "b", "dependsOn": ["a"], "spec": _briefing(*columns)})
    plan, found = check(text)
    assert plan is not None
    assert not found
    assert plan.stage("b").references == (
        Reference("data.template.columns[0].node", "a.result.items[0].output", "a", required=True, whole=True),
        Reference("data.template.columns[1].expr", "a.result.n", "a", required=False, whole=True),
    )


def test_columns_make_execution_edges() -> None:
    plan, found = check(_inference({"name": "a"}, {"name": "b", "spec": _briefing({"expr": "a.result.n"})}))
    assert plan is not None
    assert _codes(found) == ["not-upstream"]
    assert plan.stage("b").waits_for == ("a",)


def test_columns_without_a_stage() -> None:
    text = _inference({"name": "a"}, {"name": "b", "dependsOn": ["a"], "spec": _briefing({"expr": "aa"})})
    assert _codes(check(text)[1]) == ["unknown-stage"]


def test_placeholders_in_columns_are_judged_as_placeholders() -> None:
    columns = {"expr": "${a.task_id}.result.n"}
    text = _inference({"name": "a"}, {"name": "b", "dependsOn": ["a"], "spec": _briefing(columns)})
    plan, found = check(text)
    assert plan is not None
    assert not found
    assert [r.whole for r in plan.stage("b").references] == [False]


def test_a_template_needs_something_upstream() -> None:
    alone = _text("inference", **_briefing({"expr": "a.result"}))
    assert _codes(check(alone)[1]) == ["no-upstream"]
    waiting = _text("inference", dependsOn=[UUID], **_briefing({"expr": "a.result"}))
    assert _codes(check(waiting)[1]) == ["unchecked-reference"]


def test_data_of_an_echo_task_is_never_a_template() -> None:
    assert check(_text("echo", **_briefing({"expr": "a.result"})))[1] == ()


def test_other_submissions_are_looked_up_at_run_time() -> None:
    plan, found = check(_text("echo", dependsOn=[UUID], data="${draft.result.x}"))
    assert plan is not None
    assert _codes(found) == ["unchecked-reference"]
    assert plan.stages[0].references == (Reference("data", "draft.result.x", None, whole=True),)


def test_faults_of_values_given_with_set() -> None:
    _, found = check(_text("echo", data=1), overrides=["spec.data=${a.result}"])
    assert [(d.line, d.path, d.code) for d in found] == [(0, "spec.data", "unknown-stage")]
