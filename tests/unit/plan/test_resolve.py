"""Values in the place of references. [protocol 2.6]"""

from __future__ import annotations

from typing import Any

import pytest

from mloc_prefect.errors import ExecutionError
from mloc_prefect.plan import Reference, ResourceRequest, StagePlan
from mloc_prefect.plan.expressions import root_of
from mloc_prefect.plan.reference_sites import placeholders
from mloc_prefect.plan.resolve import Resolved, resolve_stage, with_result_level
from mloc_prefect.tasks.base import ExecutorRef

RESULTS = {
    "a": {
        "ok": True,
        "items": [{"output": "text ${b.result.x} ${env.HOME}"}],
        "n": 8,
        "half": 0.25,
        "no": None,
        "empty": "",
    },
    "wrapped": {"result": {"x": 1}, "worker_id": "w-1"},
}
STAGES = {"a", "wrapped", "later", "env2"}


def _stage(spec: dict[str, Any], required: tuple[str, ...] = ()) -> StagePlan:
    references: list[Reference] = []
    for spot in placeholders(spec, required):
        root = root_of(spot.expression)
        if root in STAGES or (root in {"env", "param"} and "." in spot.expression):
            references.append(spot.reference(root if root in STAGES else None))
    return StagePlan(
        key="s",
        node="s",
        name="w:s",
        task_type="echo",
        depends_on=("a",),
        waits_for=(),
        external=(),
        effective={"metadata": {"name": "w:s"}, "spec": spec},
        resources=ResourceRequest(),
        executor=ExecutorRef("m:C"),
        model=None,
        references=tuple(references),
    )


def _resolve(spec: dict[str, Any], *required: str) -> Resolved:
    ids = {"a": "id-a", "later": "id-later"}
    return resolve_stage(_stage(spec, required), RESULTS, ids, env={"HOME": "/h"}, params={"top": "5"})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${a.result.n}", 8),
        ("${ a.result.n }", 8),
        ("${a.result.half}", 0.25),
        ("${a.result.ok}", True),
        ("${a.result.items}", RESULTS["a"]["items"]),
        ("${wrapped.result.x}", 1),
        ("${wrapped.worker_id}", "w-1"),
        ("${a.task_id}", "id-a"),
        ("${later.task_id}", "id-later"),
        ("${env.HOME}", "/h"),
        ("${param.top}", "5"),
        ("n=${a.result.n}", "n=8"),
        ("${a.result.n}${a.result.half}", "80.25"),
        ("ok ${a.result.ok}", "ok True"),
        ("$${a.result.n}", "$8"),
        ("$${env.HOME}", "$/h"),
        ("Hello $${user.name}", "Hello ${user.name}"),
        ("$${file%.txt} and $${{ x.y }}", "${file%.txt} and ${{ x.y }}"),
        ("$$${user.name}$", "$${user.name}$"),
        ("$${UPPER}", "$${UPPER}"),
        ("${UPPER} and ${a.result.n}", "${UPPER} and 8"),
        ("${UPPER}", "${UPPER}"),
        ("${}", "${}"),
        ("${open", "${open"),
    ],
)
def test_values(text: str, value: object) -> None:
    resolved = _resolve({"deep": [{"x": text}]})
    assert resolved == Resolved({"deep": [{"x": value}]})
    assert type(resolved.spec["deep"][0]["x"]) is type(value)


def test_a_mapping_in_other_text_is_told() -> None:
    resolved = _resolve({"x": "got ${wrapped.result}", "y": "${wrapped.result}"})
    assert resolved.spec == {"x": "got {'x': 1}", "y": {"x": 1}}
    told = "spec.x: ${wrapped.result} is a mapping inside other text, written as Python writes it"
    assert resolved.warnings == (told,)


def test_the_output_of_a_row_that_failed_is_no_value() -> None:
    rows = [{"output": "", "error": "the prompt is empty"}, {"output": "", "finish_reason": "stop"}]
    spec = {
        "x": "First: ${a.result.items[0].output}",
        "y": "${a.result.items[1].output}",
        "z": "${a.result.items[0].error}",
    }
    resolved = resolve_stage(_stage(spec), {"a": {"items": rows}}, {}, env={}, params={})
    assert resolved.spec == {"x": "First: ", "y": "", "z": "the prompt is empty"}
    text = "${a.result.items[0].output} is empty text, because the row of 'result.items[0]' failed: the prompt is empty"
    assert resolved.warnings == (f"spec.x: {text}",)


def test_text_of_results_is_never_expanded() -> None:
    resolved = _resolve({"x": "${a.result.items[0].output}", "y": "says ${a.result.items[0].output}"})
    assert resolved.spec == {"x": "text ${b.result.x} ${env.HOME}", "y": "says text ${b.result.x} ${env.HOME}"}


def test_keys_and_other_values_stay() -> None:
    spec = {"${a.result.n}": 1, "t": None, "f": 1.5}
    assert _resolve(spec).spec == spec


def test_the_plan_is_not_changed() -> None:
    stage = _stage({"x": ["${a.result.n}"]})
    resolve_stage(stage, RESULTS, {}, env={}, params={})
    assert stage.effective["spec"] == {"x": ["${a.result.n}"]}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "${a.result.nope}",
            "in the result of 'a', 'result' has no key 'nope' (it has: ok, items, n, half, no, empty)",
        ),
        ("${a.result.no}", "the value is null"),
        ("${later.result.x}", "there is no result of 'later'"),
        ("${env.MISSING}", "variable MISSING is not set"),
        ("${param.missing}", "parameter missing is not set"),
    ],
)
def test_what_has_no_value_becomes_empty_text(text: str, why: str) -> None:
    resolved = _resolve({"inference": {"system_prompt": text, "other": f"<{text}>"}})
    assert resolved.spec == {"inference": {"system_prompt": "", "other": "<>"}}
    assert resolved.warnings[0] == f"spec.inference.system_prompt: {text} is empty text, because {why}"
    assert len(resolved.warnings) == 2


@pytest.mark.parametrize(
    ("text", "why"),
    [("${a.result.url}", "no key 'url'"), ("${a.result.empty}", "is empty"), ("${a.result.no}", "is null")],
)
def test_required_places_fail(text: str, why: str) -> None:
    with pytest.raises(ExecutionError) as caught:
        _resolve({"checkpoint": {"load": {"url": text}}}, "checkpoint.load")
    assert caught.value.message.startswith(f"spec.checkpoint.load.url needs a value for {text}")
    assert why in caught.value.message
    assert not caught.value.retryable


def test_required_is_a_path_not_a_prefix_of_text() -> None:
    assert _resolve({"checkpoint": {"loader": "${a.result.url}"}}, "checkpoint.load").spec == {
        "checkpoint": {"loader": ""}
    }


def test_a_document_without_a_spec() -> None:
    stage = _stage({})
    assert resolve_stage(stage, {}, {}, env={}, params={}) == Resolved({})


def test_result_level() -> None:
    assert with_result_level({"ok": True}) == {"result": {"ok": True}}
    assert with_result_level({"result": 1, "worker_id": "w"}) == {"result": 1, "worker_id": "w"}
    assert with_result_level([1]) == {"result": [1]}


def test_a_divided_task_is_read_as_one_that_was_not_divided() -> None:
    merged = {"items": [{"output": "x"}], "model": "m"}
    result = {"shards": [{"result": {"items": []}}], "merged": merged}
    found = with_result_level({"task_id": "t", "worker_id": "MULTI", "result": result})["result"]
    assert found == with_result_level(result)["result"], "as kept by an earlier version"
    assert found["items"] == found["merged"]["items"] == merged["items"]
    assert (found["model"], len(found["shards"])) == ("m", 1)
    assert with_result_level({"merged": merged}) == {"result": {"merged": merged}}  # somebody's own result
