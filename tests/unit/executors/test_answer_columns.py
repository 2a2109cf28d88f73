"""Rows without a value in the column that a rule compares with are found before a model is loaded."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.training.rewards.answer_columns import answer_columns, with_answers


def kept(rewards: list[dict[str, Any]], rows: list[dict[str, Any]]) -> tuple[list[int], list[str]]:
    wanted = answer_columns(SpecReader({"rewards": rewards}))
    return with_answers(rows, range(10, 10 + len(rows)), wanted)


def test_rows_without_a_value_are_left_out_and_named() -> None:
    rows = [{"answer": "2"}, {"answer": None}, {"answer": " "}, {"answer": float("nan")}, {"answer": []}, {"answer": 0}]
    positions, notes = kept([{"name": "exact"}], rows)
    assert positions == [0, 5]
    assert notes == [
        "4 of 6 rows are left out: they have no value in column 'answer', which spec.rewards[0] reads "
        "(rows 11, 12, 13, 14)"
    ]


def test_rows_without_a_number_are_counted() -> None:
    positions, notes = kept([{"name": "numeric", "answer_column": "gold"}], [{"gold": "42"}, {"gold": "many"}])
    assert positions == [0, 1]
    assert notes == ["1 of 2 rows have no number in column 'gold', so spec.rewards[0] gives them 0 (row 11)"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"gold": 1}], "spec.rewards[0] needs the column 'answer' in the data; columns: ['gold']"),
        ([{"answer": None}], "spec.rewards[0]: no row has a value in column 'answer'"),
        (
            [{"answer": "1"}, {"answer": {"a": 1}}],
            "row 11, column 'answer': spec.rewards[0] compares texts and numbers",
        ),
    ],
)
def test_columns_that_cannot_be_compared_with(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        kept([{"name": "exact"}], rows)


def test_rules_that_read_no_column_need_none() -> None:
    assert kept([{"name": "json"}, {"path": "lab:exact"}], [{"id": 1}]) == ([0], [])
