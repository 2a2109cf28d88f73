"""Rows of trainings: from the spec, files and earlier stages; what is missing or empty is told before a model loads."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.sources.source_lookup import SourceLookup
from mloc_prefect.executors.training.training_rows import pair_rows, prompt_rows, text_rows

SUM = {"question": "1+1=", "answer": 2}
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


@pytest.fixture
def places(tmp_path: Path) -> SourceLookup:
    return SourceLookup.of({"home": str(tmp_path / "home"), "base_dir": str(tmp_path)})


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


def texts(data: dict[str, Any], places: SourceLookup) -> Any:
    return text_rows(SpecReader({"data": data}), places, "SFT")


def test_columns_become_prompt_and_completion(places: SourceLookup) -> None:
    data = {"rows": [SUM], "prompt_column": "question", "response_column": "answer"}
    assert texts(data, places).rows == [{"prompt": "1+1=\n\n", "completion": "2"}]
    assert texts({**data, "separator": " "}, places).rows == [{"prompt": "1+1= ", "completion": "2"}]


def test_every_source(places: SourceLookup, tmp_path: Path) -> None:
    name = write(tmp_path / "rows.jsonl", {"text": "a"}, {"text": "b"}, {"text": "c"})
    for data in ({"dataset_name": name}, {"jsonl_path": name}, {"jsonl": {"path": name}}):
        assert [row["text"] for row in texts(data, places).rows] == ["a", "b", "c"]
        assert len(texts({**data, "max_samples": 2}, places).rows) == 2
    assert [r["text"] for r in texts({"dataset_name": name, "split": "train[1:]"}, places).rows] == ["b", "c"]
    assert texts({"prompts": ["x", "y"]}, places).rows == [{"text": "x"}, {"text": "y"}]
    both = {"dataset_name": name, "prompts": ["x"]}
    assert len(texts(both, places).rows) == 3, "prompts count only without a data set"


def test_fields_of_the_jsonl_block_come_first(places: SourceLookup, tmp_path: Path) -> None:
    name = write(tmp_path / "rows.jsonl", {"q": "a", "r": "b", "body": "whole"})
    jsonl = {"path": name, "prompt_field": "q", "response_field": "r", "separator": "|"}
    data = {"jsonl": jsonl, "prompt_column": "other", "response_column": "others"}
    assert texts(data, places).rows == [{"prompt": "a|", "completion": "b"}]
    assert texts({"jsonl": {"path": name, "text_field": "body"}}, places).rows == [{"text": "whole"}]


def test_chat_messages_stay_messages(places: SourceLookup) -> None:
    assert texts({"rows": [{"messages": CHAT}], "text_field": "messages"}, places).rows == [{"messages": CHAT}]
    with pytest.raises(UserError, match="some rows are chat messages and others are plain text"):
        texts({"rows": [{"text": CHAT}, {"text": "plain"}]}, places)


def test_empty_rows_are_left_out_and_counted(places: SourceLookup) -> None:
    found = texts({"rows": [{"text": "a"}, {"text": " "}, {"text": None}]}, places)
    assert found.rows == [{"text": "a"}]
    assert found.notes == ["2 of 3 rows are left out: they are empty"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "spec.data must define dataset_name or prompts for SFT tasks"),
        ({"prompts": []}, "spec.data.prompts must be a non-empty list of strings"),
        ({"rows": [SUM], "prompt_column": "q", "response_column": "answer"}, "Dataset missing columns ['q']"),
        ({"rows": [SUM]}, "Dataset missing text field 'text'. Columns: ['question', 'answer']"),
        ({"rows": [{"text": ""}]}, "all 1 rows are empty"),
        ({"rows": []}, "rows has no rows to train on"),
        ({"rows": "many"}, "spec.data.rows must be a list of mappings, found 'str'"),
        ({"rows": [{"text": {"a": 1}}]}, "column 'text' holds dict values, not text"),
    ],
)
def test_texts_that_are_none(data: dict[str, Any], message: str, places: SourceLookup) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        texts(data, places)


def pairs(data: dict[str, Any], places: SourceLookup) -> Any:
    return pair_rows(SpecReader({"data": data}), places)


def test_pairs(places: SourceLookup, tmp_path: Path) -> None:
    pair = {"prompt": "p", "chosen": "c", "rejected": "r"}
    name = write(tmp_path / "pairs.jsonl", {"q": "p", "good": "c", "bad": "r"})
    columns = {"prompt_column": "q", "chosen_column": "good", "rejected_column": "bad"}
    fields = {"prompt_field": "q", "chosen_field": "good", "rejected_field": "bad"}
    for data in ({"preferences": [pair]}, {"dataset_name": name, **columns}, {"jsonl": {"path": name, **fields}}):
        assert pairs(data, places).rows == [pair]
    demo = pairs({}, places)
    assert (len(demo.rows), demo.demo) == (4, True)


def test_pairs_of_two_stages(places: SourceLookup) -> None:
    better = [{"index": 0, "prompt": "p", "output": "good"}, {"index": 1, "prompt": "q", "output": "same"}]
    worse = [{"index": 0, "prompt": "p", "output": "bad"}, {"index": 1, "prompt": "q", "output": "same"}]
    found = pairs({"pairs": {"chosen": better, "rejected": worse}}, places)
    assert found.rows == [{"prompt": "p", "chosen": "good", "rejected": "bad"}]
    assert found.notes == ["1 of 2 pairs are left out: both answers are the same"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"pairs": {"chosen": [1], "rejected": []}}, "chosen has 1 items and rejected 0"),
        ({"pairs": {"chosen": [{"prompt": "a"}], "rejected": [{"prompt": "b"}]}}, "the items 0 have different prompts"),
        ({"pairs": {"chosen": ["x"], "rejected": ["y"]}}, "the items 0 have no prompt"),
        ({"pairs": {"chosen": "x"}}, "needs chosen and rejected"),
        ({"rows": [{"prompt": "p"}]}, "Dataset missing columns ['chosen', 'rejected']"),
        ({"preferences": [{"prompt": "p", "chosen": "c", "rejected": "c"}]}, "chosen and rejected are the same"),
    ],
)
def test_pairs_that_are_none(data: dict[str, Any], message: str, places: SourceLookup) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        pairs(data, places)


def test_chat_pairs_need_no_prompt(places: SourceLookup) -> None:
    row = {"prompt": "hi", "chosen": CHAT, "rejected": [CHAT[0], {"role": "assistant", "content": "no"}]}
    assert set(pairs({"rows": [row]}, places).rows[0]) == {"chosen", "rejected"}


def test_prompts_keep_other_columns_for_rewards(places: SourceLookup) -> None:
    data = {"rows": [SUM], "prompt_column": "question"}
    assert prompt_rows(SpecReader({"data": data}), places).rows == [{"prompt": "1+1=", "answer": 2}]
    assert prompt_rows(SpecReader({"data": {"prompts": ["a", " "]}}), places).rows == [{"prompt": "a"}]
    assert prompt_rows(SpecReader({"data": {}}), places).demo
    with pytest.raises(UserError, match=re.escape("Dataset missing columns ['text']")):
        prompt_rows(SpecReader({"data": {"rows": [SUM]}}), places)


HALF = "half \ud83d of it"


def test_rows_of_no_valid_unicode_are_left_out_and_named(places: SourceLookup, tmp_path: Path) -> None:
    name = write(tmp_path / "rows.jsonl", {"body": "fine"}, {"body": HALF}, {"body": "too"}, {"body": ""})
    found = texts({"jsonl": {"path": name, "text_field": "body"}}, places)
    assert ([row["text"] for row in found.rows], found.numbers) == (["fine", "too"], [0, 2])
    assert found.notes == [
        "1 of 4 rows are left out: they are empty",
        "1 of 4 rows are left out: no valid Unicode text: row 1, column 'body'",
    ]
    chats = texts({"rows": [{"messages": CHAT}, {"messages": [{"role": "user", "content": HALF}]}],
                   "text_field": "messages"}, places)  # fmt: skip
    assert (len(chats.rows), chats.numbers) == (1, [0])
    answers = {"rows": [{"prompt": HALF, "id": 1}, {"prompt": "fine", "id": HALF}]}
    prompts = prompt_rows(SpecReader({"data": answers}), places)
    assert (prompts.rows, prompts.numbers) == ([{"prompt": "fine", "id": HALF}], [1]), "other columns are not read"
    with pytest.raises(UserError, match=re.escape("no row has valid Unicode text: row 0, column 'text'")):
        texts({"rows": [{"text": HALF}]}, places)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (float("nan"), None),
        (datetime.date(2024, 5, 6), "2024-05-06"),
        (True, "true"),
        (1.5, "1.5"),
        (7, "7"),
        (" ", None),
    ],
)
def test_values_that_are_no_text(value: Any, text: str | None, places: SourceLookup) -> None:
    found = texts({"rows": [{"text": value}, {"text": "other"}]}, places)
    assert [row["text"] for row in found.rows] == ([text, "other"] if text else ["other"])


@pytest.mark.parametrize("value", [b"raw", ["a"], {"a": 1}])
def test_values_that_cannot_be_text_are_refused_by_row_and_column(value: Any, places: SourceLookup) -> None:
    message = f"row 1: column 'text' holds {type(value).__name__} values, not text"
    with pytest.raises(UserError, match=re.escape(message)):
        texts({"rows": [{"text": "a"}, {"text": value}]}, places)


def test_chats_as_json_text_are_read_with_a_note(places: SourceLookup) -> None:
    found = texts({"rows": [{"messages": json.dumps(CHAT)}] * 2, "text_field": "messages"}, places)
    assert found.rows == [{"messages": CHAT}] * 2
    assert found.notes == ["2 rows (0, 1) hold chat messages as JSON text, which is read as messages"]
    plain = texts({"rows": [{"text": "[1, 2]"}, {"text": "[broken"}]}, places)
    assert (plain.rows, plain.notes) == ([{"text": "[1, 2]"}, {"text": "[broken"}], [])


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"training": False}])
def test_messages_that_ask_not_to_be_learned_from_are_noted(mark: dict[str, Any], places: SourceLookup) -> None:
    marked = [CHAT[0], {**CHAT[1], **mark}]
    found = texts({"rows": [{"messages": CHAT}, {"messages": marked}], "text_field": "messages"}, places)
    assert [note[:62] for note in found.notes] == [
        "1 row (1) have messages with weight: 0 or train: false, which h"[:62]
    ]


def test_prompt_and_response_of_two_forms_become_messages(places: SourceLookup) -> None:
    data = {"prompt_column": "q", "response_column": "a"}
    wanted = {"prompt": [CHAT[0]], "completion": [CHAT[1]]}
    for row in ({"q": [CHAT[0]], "a": "hello"}, {"q": "hi", "a": [CHAT[1]]}, {"q": [CHAT[0]], "a": [CHAT[1]]}):
        assert texts({"rows": [row], **data}, places).rows == [wanted]


def test_pairs_of_two_forms_become_messages(places: SourceLookup) -> None:
    bad = {"role": "assistant", "content": "no"}
    wanted = {"prompt": [CHAT[0]], "chosen": [CHAT[1]], "rejected": [bad]}
    for row in (
        {"prompt": "hi", "chosen": [CHAT[1]], "rejected": [bad]},
        {"prompt": [CHAT[0]], "chosen": "hello", "rejected": "no"},
        {"prompt": "hi", "chosen": [CHAT[1]], "rejected": "no"},
    ):
        assert pairs({"rows": [row]}, places).rows == [wanted]
    with pytest.raises(UserError, match=re.escape("row 0: the answers have no prompt: there is no column 'prompt'")):
        pairs({"rows": [{"chosen": [CHAT[1]], "rejected": [bad]}]}, places)


def test_tools_of_chats_stay_as_they_are(places: SourceLookup) -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"a": 1}}}]
    rows = [{"messages": CHAT, "tools": tools}, {"messages": CHAT, "tools": json.dumps(tools)}, {"messages": CHAT}]
    found = texts({"rows": rows, "text_field": "messages"}, places)
    assert [row["tools"] and json.loads(row["tools"]) for row in found.rows] == [tools, tools, None]
    with pytest.raises(UserError, match=re.escape("row 0: column 'tools' holds no list of tools: add")):
        texts({"rows": [{"messages": CHAT, "tools": "add"}], "text_field": "messages"}, places)
