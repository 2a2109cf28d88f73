"""The block `params` of a spec, and the check of values against it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.diagnostics.diagnostic import errors
from mloc_prefect.plan import check
from mloc_prefect.spec.declared_parameters import SpecParameter, bound_values, inferred, value_faults

if TYPE_CHECKING:
    from mloc_prefect.plan.workflow_plan import WorkflowPlan

SPEC = """apiVersion: mloc/v1
kind: EchoTask
metadata: {name: n}
params:
  topic: {type: string, default: tides, description: What it is about}
  rows: {type: integer, default: 8, minimum: 1, maximum: 100}
  rate: {type: number}
  style: {enum: [short, long], default: short}
  shuffle: true
  names: [a, b]
  language:
spec:
  taskType: echo
  resources: {replicas: 1, hardware: {cpu: 1, memory: 64Mi}}
  data: {message: "${param.topic}", rows: "${param.rows}"}
"""
GIVEN = {"rate": "0.5", "language": "en"}


def plan_of(text: str, params: Any = ()) -> WorkflowPlan:
    plan, found = check(text, params=params)
    assert plan is not None, found
    return plan


def test_types_come_from_the_block_or_from_its_defaults() -> None:
    types = {one.name: one.type for one in plan_of(SPEC).parameters}
    assert types == {
        "topic": "string",
        "rows": "integer",
        "rate": "number",
        "style": "string",
        "shuffle": "boolean",
        "names": "array",
        "language": "string",
    }


def test_the_block_is_in_no_task() -> None:
    assert {key for stage in plan_of(SPEC).stages for key in stage.effective} == {
        "apiVersion",
        "kind",
        "metadata",
        "spec",
    }
    stages = SPEC + "  stages: [{name: a, spec: {}}, {name: b, spec: {}}]\n"
    assert all("params" not in stage.effective for stage in plan_of(stages).stages)


@pytest.mark.parametrize(
    ("given", "line", "code", "message"),
    [
        ({"rows": "many"}, 6, "bad-parameter", "Parameter 'rows' must be an integer"),
        ({"rows": 2.5}, 6, "bad-parameter", "Parameter 'rows' must be an integer"),
        ({"rows": True}, 6, "bad-parameter", "Parameter 'rows' must be an integer"),
        ({"rows": "0"}, 6, "bad-parameter", "Parameter 'rows' must be at least 1"),
        ({"rows": 101}, 6, "bad-parameter", "Parameter 'rows' must be at most 100"),
        ({"style": "tall"}, 8, "bad-parameter", 'Parameter \'style\' must be one of "short", "long"'),
        ({"shuffle": "maybe"}, 9, "bad-parameter", "Parameter 'shuffle' must be true or false"),
        ({"names": "a"}, 10, "bad-parameter", "Parameter 'names' must be a list"),
        ({"topic": 3}, 5, "bad-parameter", "Parameter 'topic' must be text"),
        ({"tpoic": "x"}, 4, "unknown-parameter", "There is no parameter 'tpoic'"),
        ({"language": None}, 11, "missing-parameter", "Parameter 'language' has no value"),
    ],
)
def test_a_bad_value_is_one_line_with_the_place_of_its_declaration(
    given: dict[str, Any], line: int, code: str, message: str
) -> None:
    plan, found = check(SPEC, params={**GIVEN, **given})
    assert plan is None
    assert [(d.line, d.code, d.message) for d in errors(found)] == [(line, code, message)]


def test_a_similar_name_is_offered() -> None:
    (one,) = errors(check(SPEC, params={**GIVEN, "tpoic": "x"})[1])
    assert one.suggestion == "did you mean 'topic'?"
    (other,) = errors(check(SPEC.replace("${param.topic}", "${param.topics}"))[1])
    assert (other.code, other.suggestion) == ("unknown-parameter", "did you mean 'topic'?")


def test_values_of_secret_names_are_not_shown() -> None:
    text = SPEC.replace("  language:\n", "  language: en\n  api_key: {enum: [x]}\n")
    (one,) = errors(check(text, params={"rate": 1, "api_key": "hidden-value"})[1])
    assert "hidden-value" not in str(one)


def test_texts_become_values_of_the_type() -> None:
    given = {**GIVEN, "rows": "3", "shuffle": "false", "names": '["x"]'}
    assert value_faults(plan_of(SPEC).parameters, given) == {}
    assert bound_values(plan_of(SPEC).parameters, given) == {
        "topic": "tides",
        "rows": 3,
        "rate": 0.5,
        "style": "short",
        "shuffle": False,
        "names": ["x"],
        "language": "en",
    }


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3", "integer", 3),
        ("0.5", "number", 0.5),
        ("true", "boolean", True),
        ("tides", "string", "tides"),
        ("[1]", "array", [1]),
        ("null", "string", "null"),
        ("NaN", "string", "NaN"),
    ],
)
def test_without_a_block_the_value_says_the_type(text: str, kind: str, value: Any) -> None:
    assert inferred("x", text) == (SpecParameter(name="x", type=kind, default=value), value)


@pytest.mark.parametrize("name", ["class", "mloc_spec", "submission_id", "a-b", "größe", '"1a"'])
def test_names_that_cannot_be_parameters(name: str) -> None:
    (one,) = errors(check(SPEC.replace("  language:\n", f"  {name}: 1\n"))[1])
    assert (one.line, one.column, one.code) == (11, 3, "bad-parameter")


def test_specs_without_a_block_are_as_before() -> None:
    text = SPEC[: SPEC.index("params:")] + SPEC[SPEC.index("spec:") :].replace("${param.rows}", "1")
    assert plan_of(text, {"topic": "x", "more": "y"}).parameters == ()
    (one,) = errors(check(text)[1])
    assert (one.code, one.message) == ("unknown-parameter", "${param.topic} names a parameter that is not given")
