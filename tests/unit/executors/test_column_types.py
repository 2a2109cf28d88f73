"""Rows as data sets: nested values come back as they are, and columns of two types are refused."""

from __future__ import annotations

from typing import Any

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.training.column_types import check_columns, data_set_of


def _called(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


ASKED = {"role": "user", "content": "q"}
CHATS: list[list[dict[str, Any]]] = [
    [ASKED, _called("f", {"x": 1})],
    [ASKED, _called("g", {"y": "a", "deep": {"z": None}})],
    [{"role": "user", "content": [{"type": "text", "text": "q"}]}, {"role": "assistant", "content": "a"}],
]


def test_messages_come_back_as_they_are() -> None:
    rows = [{"messages": chat, "n": n} for n, chat in enumerate(CHATS)]
    check_columns(rows)
    assert list(data_set_of(rows)) == rows


def test_also_after_the_trainer_has_split_them() -> None:
    rows = [{"chosen": chat} for chat in CHATS[:2]]
    split = data_set_of(rows).map(lambda row: {"prompt": row["chosen"][:1], "chosen": row["chosen"][1:]})
    assert [row["chosen"] for row in split] == [chat[1:] for chat in CHATS[:2]]
    assert [row["prompt"] for row in split] == [[ASKED]] * 2


def test_columns_that_the_first_row_lacks_are_kept() -> None:
    assert list(data_set_of([{"text": "a"}, {"text": "b", "tools": "[]"}])) == [
        {"text": "a", "tools": None},
        {"text": "b", "tools": "[]"},
    ]


@pytest.mark.parametrize("values", [("x", 1), ([1], "x"), ({"a": 1}, "x")])
def test_columns_of_two_types_are_refused(values: tuple[Any, Any]) -> None:
    with pytest.raises(UserError, match="column 'c' needs values of one type: row 0 holds"):
        check_columns([{"c": value} for value in values])
