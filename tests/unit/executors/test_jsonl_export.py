"""`postprocess.jsonl_export`: which value goes where, what is left out, and what cannot be meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.jsonl_export import ExportWriter
from mloc_prefect.executors.common.spec_reader import SpecReader

ITEMS = [
    {"index": 0, "prompt": "p0", "output": "o0", "metadata": {"id": 7, "tags": ["a", "ü"]}},
    {"index": 1, "prompt": "p1", "output": "", "metadata": {}},
    {"index": 2, "prompt": "p2", "output": "", "error": "too long", "metadata": {"id": 9}},
]


def export(tmp_path: Path, **wanted: Any) -> tuple[dict[str, Any], list[dict[str, str]]]:
    made = ExportWriter.of(SpecReader({"postprocess": {"jsonl_export": {"path": "a/b.jsonl", **wanted}}}), tmp_path)
    assert made is not None
    told = made.write(ITEMS)
    return told, [json.loads(line) for line in Path(told["path"]).read_text(encoding="utf-8").splitlines()]


def test_nothing_is_written_without_it(tmp_path: Path) -> None:
    assert ExportWriter.of(SpecReader({}), tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_prompt_and_output_are_the_default(tmp_path: Path) -> None:
    told, records = export(tmp_path)
    assert records == [{"prompt": "p0", "output": "o0"}, {"prompt": "p1", "output": ""}]
    assert told == {
        "path": str(tmp_path / "a/b.jsonl"),
        "relative_path": "a/b.jsonl",
        "record_count": 2,
        "fields": ["prompt", "output"],
        "url": f"file://{tmp_path}/a/b.jsonl",
    }


@pytest.mark.parametrize(
    ("path", "destination", "endpoint", "url"),
    [
        ("b.jsonl", {}, "http://head:8000/", "http://head:8000/api/v1/results/a%20task/files/b.jsonl"),
        ("b.jsonl", {"type": "local"}, None, "file://{task}/b.jsonl"),
        ("a/b.jsonl", {}, "http://head:8000", "file://{task}/a/b.jsonl"),  # not served: below a folder
        ("b.jsonl", {"type": "HTTP", "url": "http://x"}, "http://head:8000", None),  # it is uploaded there
    ],
)
def test_where_others_find_it(tmp_path: Path, path: str, destination: Any, endpoint: Any, url: str | None) -> None:
    task = tmp_path / "a task"
    spec = {"postprocess": {"jsonl_export": {"path": path}}, "output": {"destination": destination}}
    made = ExportWriter.of(SpecReader(spec), task, endpoint)
    assert made is not None
    told = made.write(ITEMS)
    wanted = url and url.format(task=task.as_uri().removeprefix("file://"))
    assert told.get("url") == wanted
    assert ("sha256" in told) == (wanted is None)


def test_every_kind_of_field(tmp_path: Path) -> None:
    _, records = export(
        tmp_path,
        fields={
            "id": {"from": "metadata", "key": "id", "default": -1},
            "tags": "metadata.tags",
            "row": "item.index",
            "answer": {"source": "output", "fallback": "prompt"},
            "kind": {"literal": "test"},
            "also": {"from": "literal", "value": 3},
        },
    )
    assert records == [
        {"id": "7", "tags": '["a", "ü"]', "row": "0", "answer": "o0", "kind": "test", "also": "3"},
        {"id": "-1", "tags": "", "row": "1", "answer": "p1", "kind": "test", "also": "3"},
    ]


@pytest.mark.parametrize("output", ["", " \n", None])
def test_a_row_without_a_required_field_fails_the_task(tmp_path: Path, output: str | None) -> None:
    made = ExportWriter.of(SpecReader({"postprocess": {"jsonl_export": {"required_fields": ["output"]}}}), tmp_path)
    assert made is not None
    with pytest.raises(UserError, match="row 4 has no value for the required field 'output'"):
        made.write([ITEMS[0], {"index": 4, "prompt": "p", "output": output}])
    assert not list(tmp_path.glob("*.jsonl"))


def test_failed_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    made = ExportWriter.of(SpecReader({"postprocess": {"jsonl_export": {"required_fields": ["prompt"]}}}), tmp_path)
    notes: list[str] = []
    assert made is not None
    assert made.write(ITEMS, notes)["record_count"] == 2
    assert notes == ["jsonl_export: 1 of 3 rows are left out: they failed"]


@pytest.mark.parametrize(
    ("fallback", "value"),
    [("some text", "some text"), ("prompt", "p1"), ("metadata", "metadata"), ("a.b", "a.b"), (7, "7"),
     ({"literal": "x"}, "x"), ("item.index", "1")],
)  # fmt: skip
def test_a_fallback_is_a_source_or_stands_for_itself(tmp_path: Path, fallback: Any, value: str) -> None:
    _, records = export(tmp_path, fields={"answer": {"from": "output", "fallback": fallback}})
    assert [record["answer"] for record in records] == ["o0", value]


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"path": "../x.jsonl"}, "leaves the directory of the task"),
        ({"path": "responses.json"}, "reserved for our own files"),
        ({"path": "attempts/x"}, "reserved for our own files"),
        ({"fields": {"a": "answer"}}, r"fields\.a must be prompt, output"),
        ({"fields": {"a": "metadata"}}, r"fields\.a must be"),
        ({"fields": {"a": {"from": "output", "fallback": {"from": "x"}}}}, r"fields\.a\.fallback must be"),
        ({"fields": {"a": 3}}, r"fields\.a must be"),
        ({"required_fields": ["zz"]}, "required_fields must be one of prompt, output"),
    ],
)
def test_what_cannot_be_meant(tmp_path: Path, wanted: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        export(tmp_path, **wanted)
    assert not list(tmp_path.rglob("*.jsonl"))
