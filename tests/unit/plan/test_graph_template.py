"""One prompt made from several results. [protocol 4.7]"""

from __future__ import annotations

from typing import Any

import pytest

from mloc_prefect.errors import ExecutionError
from mloc_prefect.plan.graph_template import filled_prompt

UPSTREAM = {
    "a": {"result": {"items": [{"output": "  sun\r\nand wind  "}], "n": 3, "ok": True, "m": {"ä": [1]}, "nil": None}},
    "b": {"result": {"items": [{"output": "cost"}], "f": 0.25}},
}
COLUMNS = [
    {"label": " Benefits ", "node": "a", "path": "result.items[0].output"},
    {"label": "Costs", "expr": "b.result.items.0.output"},
]


def test_two_column_briefing_by_default() -> None:
    lines = filled_prompt({"columns": COLUMNS}, UPSTREAM).split("\n")
    assert lines[2:5] == ["\u2022 Benefits: sun", "  and wind", "\u2022 Costs: cost"]
    assert "an energy strategist" in lines[0]
    assert len(lines) == 7
    assert "benefits against costs" in lines[-1]


@pytest.mark.parametrize(
    ("role", "shown"), [("Analyst", "an Analyst"), ("planner", "a planner"), ("urbanist", "an urbanist")]
)
def test_role(role: str, shown: str) -> None:
    assert f" {shown} " in filled_prompt({"columns": COLUMNS, "options": {"role": role}}, UPSTREAM)


def test_own_intro_and_closing() -> None:
    template = {
        "name": "two_column_briefing",
        "columns": COLUMNS[1:] * 2,
        "options": {"intro": ["x", 1], "closing": "end"},
    }
    assert filled_prompt(template, UPSTREAM) == "x\n1\n\u2022 Costs: cost\n\u2022 Costs: cost\nend"


def test_all_columns_are_shown_and_labels_have_defaults() -> None:
    columns = [*COLUMNS, {"expr": "b.result.f"}]
    assert "\u2022 Column 3: 0.25" in filled_prompt({"columns": columns}, UPSTREAM)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("a.result.n", "3"),
        ("a.result.ok", "True"),
        ("b.result.f", "0.25"),
        ("a.result.m", '{"ä": [1]}'),
        ("a.result.items[0].output", "  sun\r\nand wind  "),
    ],
)
def test_values_become_text(expression: str, text: str) -> None:
    assert filled_prompt({"name": "own", "text": "{col0_value}", "columns": [{"expr": expression}]}, UPSTREAM) == text


@pytest.mark.parametrize(("default", "text"), [("none", "none"), (None, "null"), (0, "0")])
def test_default(default: Any, text: str) -> None:
    template = {"name": "own", "text": "{col0_value}", "columns": [{"expr": "a.result.nil", "default": default}]}
    assert filled_prompt(template, UPSTREAM) == text


def test_own_text() -> None:
    text = "{{{col1_label}}} {col1_value:>6}|{unknown}|{col9_value}"
    template = {"name": "mine", "text": text, "columns": COLUMNS}
    assert filled_prompt(template, UPSTREAM) == "{Costs}   cost|{unknown}|{col9_value}"


def test_a_registered_name_wins_over_text() -> None:
    assert "ignored" not in filled_prompt({"text": "ignored", "columns": COLUMNS}, UPSTREAM)


def test_results_are_not_filled_again() -> None:
    upstream = {"a": {"result": "{col0_label} ${b.result}"}}
    template = {"name": "mine", "text": "{col0_value}", "columns": [{"expr": "a.result"}]}
    assert filled_prompt(template, upstream) == "{col0_label} ${b.result}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({}, "graph_template.template.columns must be a non-empty list."),
        ({"columns": []}, "graph_template.template.columns must be a non-empty list."),
        ({"columns": ["a"]}, "Each column definition must be a mapping."),
        ({"columns": [{"label": "L", "node": "a"}]}, "Column 'L' is missing an expr/node+path definition."),
        ({"columns": [{"expr": "a.result.nil"}]}, "Column 'Column 1' expression 'a.result.nil' resolved to null."),
        ({"columns": [{"expr": "c.result"}]}, "Column 'Column 1' expression 'c.result' resolved to null."),
        ({"columns": [{"expr": "a.result[x]"}]}, "Column 'Column 1' expression 'a.result[x]' resolved to null."),
        ({"columns": COLUMNS[:1]}, "two_column_briefing template expects at least two columns."),
        ({"columns": COLUMNS, "name": "other"}, "Unknown graph template 'other'."),
        ({"columns": COLUMNS, "name": "other", "text": "  "}, "Unknown graph template 'other'."),
    ],
)
def test_faults(template: dict[str, Any], message: str) -> None:
    with pytest.raises(ExecutionError) as caught:
        filled_prompt(template, UPSTREAM)
    assert caught.value.message == message
    assert not caught.value.retryable


@pytest.mark.parametrize("text", ["{", "}", "{col0_value.upper}", "{col0_value[0]}", "{col0_value:d}", "{0}{}"])
def test_text_that_cannot_be_filled(text: str) -> None:
    with pytest.raises(ExecutionError, match="cannot be filled") as caught:
        filled_prompt({"name": "mine", "text": text, "columns": COLUMNS}, UPSTREAM)
    assert not caught.value.retryable


def test_nothing_upstream() -> None:
    with pytest.raises(ExecutionError, match="No upstream results available for graph template prompts"):
        filled_prompt({"columns": COLUMNS}, {})


def test_the_output_of_a_row_that_failed_is_null() -> None:
    upstream = {"a": {"result": {"items": [{"output": "", "error": "too long"}, {"output": ""}]}}}
    columns = [{"label": "L", "expr": "a.result.items[0].output"}, {"expr": "a.result.items[1].output"}]
    template = {"name": "own", "text": "<{col0_value}{col1_value}>", "columns": columns}
    with pytest.raises(ExecutionError, match="resolved to null") as caught:
        filled_prompt(template, upstream)
    assert caught.value.hint == "the row of 'result.items[0]' failed: too long"
    columns[0]["default"] = "none"
    assert filled_prompt(template, upstream) == "<none>"
