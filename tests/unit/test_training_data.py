"""Rows of trainings: from the spec, files and earlier stages; what is missing or empty is told before a model loads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.fields import Fields
from mloc_prefect.executors.places import Places
from mloc_prefect.executors.training_data import pair_rows, prompt_rows, text_rows

SUM = {"question": "1+1=", "answer": 2}
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places.of({"home": str(tmp_path / "home"), "base_dir": str(tmp_path)})


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


def texts(data: dict[str, Any], places: Places) -> Any:
    return text_rows(Fields({"data": data}), places, "SFT")


def test_columns_become_prompt_and_completion(places: Places) -> None:
    data = {"rows": [SUM], "prompt_column": "question", "response_column": "answer"}
    assert texts(data, places).rows == [{"prompt": "1+1=\n\n", "completion": "2"}]
    assert texts({**data, "separator": " "}, places).rows == [{"prompt": "1+1= ", "completion": "2"}]


def test_every_source(places: Places, tmp_path: Path) -> None:
    name = write(tmp_path / "rows.jsonl", {"text": "a"}, {"text": "b"}, {"text": "c"})
    for data in ({"dataset_name": name}, {"jsonl_path": name}, {"jsonl": {"path": name}}):
        assert [row["text"] for row in texts(data, places).rows] == ["a", "b", "c"]
        assert len(texts({**data, "max_samples": 2}, places).rows) == 2
    assert [r["text"] for r in texts({"dataset_name": name, "split": "train[1:]"}, places).rows] == ["b", "c"]
    assert texts({"prompts": ["x", "y"]}, places).rows == [{"text": "x"}, {"text": "y"}]
    both = {"dataset_name": name, "prompts": ["x"]}
    assert len(texts(both, places).rows) == 3, "prompts count only without a data set"


def test_fields_of_the_jsonl_block_come_first(places: Places, tmp_path: Path) -> None:
    name = write(tmp_path / "rows.jsonl", {"q": "a", "r": "b", "body": "whole"})
    jsonl = {"path": name, "prompt_field": "q", "response_field": "r", "separator": "|"}
    data = {"jsonl": jsonl, "prompt_column": "other", "response_column": "others"}
    assert texts(data, places).rows == [{"prompt": "a|", "completion": "b"}]
    assert texts({"jsonl": {"path": name, "text_field": "body"}}, places).rows == [{"text": "whole"}]


def test_chat_messages_stay_messages(places: Places) -> None:
    assert texts({"rows": [{"messages": CHAT}], "text_field": "messages"}, places).rows == [{"messages": CHAT}]
    with pytest.raises(UserError, match="some rows are chat messages and others are plain text"):
        texts({"rows": [{"text": CHAT}, {"text": "plain"}]}, places)


def test_empty_rows_are_left_out_and_counted(places: Places) -> None:
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
def test_texts_that_are_none(data: dict[str, Any], message: str, places: Places) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        texts(data, places)


def pairs(data: dict[str, Any], places: Places) -> Any:
    return pair_rows(Fields({"data": data}), places)


def test_pairs(places: Places, tmp_path: Path) -> None:
    pair = {"prompt": "p", "chosen": "c", "rejected": "r"}
    name = write(tmp_path / "pairs.jsonl", {"q": "p", "good": "c", "bad": "r"})
    columns = {"prompt_column": "q", "chosen_column": "good", "rejected_column": "bad"}
    fields = {"prompt_field": "q", "chosen_field": "good", "rejected_field": "bad"}
    for data in ({"preferences": [pair]}, {"dataset_name": name, **columns}, {"jsonl": {"path": name, **fields}}):
        assert pairs(data, places).rows == [pair]
    demo = pairs({}, places)
    assert (len(demo.rows), demo.demo) == (4, True)


def test_pairs_of_two_stages(places: Places) -> None:
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
def test_pairs_that_are_none(data: dict[str, Any], message: str, places: Places) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        pairs(data, places)


def test_chat_pairs_need_no_prompt(places: Places) -> None:
    row = {"prompt": "hi", "chosen": CHAT, "rejected": [CHAT[0], {"role": "assistant", "content": "no"}]}
    assert set(pairs({"rows": [row]}, places).rows[0]) == {"chosen", "rejected"}


def test_prompts_keep_other_columns_for_rewards(places: Places) -> None:
    data = {"rows": [SUM], "prompt_column": "question"}
    assert prompt_rows(Fields({"data": data}), places).rows == [{"prompt": "1+1=", "answer": 2}]
    assert prompt_rows(Fields({"data": {"prompts": ["a", " "]}}), places).rows == [{"prompt": "a"}]
    assert prompt_rows(Fields({"data": {}}), places).demo
    with pytest.raises(UserError, match=re.escape("Dataset missing columns ['text']")):
        prompt_rows(Fields({"data": {"rows": [SUM]}}), places)
