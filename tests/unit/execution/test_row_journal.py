"""The journal: what is kept, what is dropped, and what a crash may do to it."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mloc_prefect.execution.row_journal import RowJournal, row_key

KEYS = [f"key-{n}" for n in range(6)]


def journal(task: Path, attempt: str = "1-1") -> RowJournal:
    return RowJournal(task, task / "attempts" / attempt)


def fill(task: Path, attempt: str, rows: dict[int, str], keys: list[str] = KEYS) -> Path:
    with journal(task, attempt) as rows_of_attempt:
        for index, output in rows.items():
            rows_of_attempt.append(index, keys[index], output=output, finish_reason="stop", usage={"tokens": 2})
    return task / "attempts" / attempt / "items.jsonl"


def outputs(rows: RowJournal, total: int = 6) -> dict[int, object]:
    return {row["index"]: row["output"] for row in rows.items(total)}


def test_line_format(tmp_path: Path) -> None:
    path = fill(tmp_path, "1-1", {2: "zwei ✓"})
    assert json.loads(path.read_text()) == {
        "index": 2,
        "key": "key-2",
        "output": "zwei ✓",
        "finish_reason": "stop",
        "usage": {"tokens": 2},
        "error": None,
    }
    assert "✓" in path.read_text()


def test_rows_of_all_attempts_count_and_the_last_wins(tmp_path: Path) -> None:
    fill(tmp_path, "1-1", {4: "old", 1: "one"})
    fill(tmp_path, "1-10", {4: "new"})
    fill(tmp_path, "1-9", {4: "middle"})  # 10 comes after 9
    rows = journal(tmp_path, "2-1")
    done = rows.completed(KEYS)
    assert sorted(done) == [1, 4]
    assert done[4]["output"] == "new"
    assert rows.reused == 2
    rows.append(0, KEYS[0], output="zero")
    assert [(row["index"], row["output"]) for row in rows.items(6)] == [(0, "zero"), (1, "one"), (4, "new")]
    assert rows.reused == 2


def test_items_have_the_shape_of_a_result(tmp_path: Path) -> None:
    rows = journal(tmp_path)
    rows.completed(KEYS)
    rows.append(1, KEYS[1], output="b", finish_reason="length", usage={"tokens": 3}, prompt="p")
    rows.append(0, KEYS[0], output="", error="no such column")
    assert list(rows.items(6)) == [
        {"index": 0, "output": "", "finish_reason": None, "error": "no such column"},
        {"index": 1, "output": "b", "finish_reason": "length", "prompt": "p"},
    ]
    assert len(rows) == 1
    assert rows.failed() == [0]


def test_rows_with_an_error_are_tried_again(tmp_path: Path) -> None:
    with journal(tmp_path) as first:
        first.append(0, KEYS[0], output="", error="bad")
        first.append(1, KEYS[1], output="", error="bad")
    rows = journal(tmp_path, "1-2")
    assert not rows.completed(KEYS)
    rows.append(0, KEYS[0], output="good")
    assert outputs(rows) == {0: "good", 1: ""}
    assert rows.failed() == [1]


def test_an_error_never_hides_a_good_row(tmp_path: Path) -> None:
    fill(tmp_path, "1-1", {0: "good"})
    with journal(tmp_path, "1-2") as second:
        second.append(0, KEYS[0], output="", error="bad")
    assert journal(tmp_path, "1-3").completed(KEYS)[0]["output"] == "good"


def test_foreign_keys_are_dropped(tmp_path: Path) -> None:
    fill(tmp_path, "1-1", {0: "same", 1: "other model"}, ["key-0", "foreign", *KEYS[2:]])
    rows = journal(tmp_path, "1-2")
    assert list(rows.completed(KEYS)) == [0]
    assert outputs(rows) == {0: "same"}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"not json",
        b"[1]",
        b"null",
        b'{"index": 0}',
        b'{"index": "0", "key": "key-0", "output": "x"}',
        b'{"index": -1, "key": "key-5", "output": "x"}',
        b'{"index": 99, "key": "key-0", "output": "x"}',
        b'\xff\xfe{"index": 0, "key": "key-0"}',
    ],
)
def test_lines_that_are_no_rows(tmp_path: Path, line: bytes) -> None:
    path = fill(tmp_path, "1-1", {1: "one"})
    path.write_bytes(line + b"\n" + path.read_bytes())
    assert list(journal(tmp_path, "1-2").completed(KEYS)) == [1]


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(min_value=0, max_value=400))
def test_a_file_torn_anywhere_keeps_its_whole_lines(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    task = tmp_path_factory.mktemp("task")
    path = fill(task, "1-1", {3: "drei ✓", 0: "null", 2: "zwei"})
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    ends = [end for end in range(len(whole)) if whole[end : end + 1] == b"\n"]  # a line needs all but its newline
    kept = {index for index, end in zip((3, 0, 2), ends, strict=True) if cut >= end}
    rows = journal(task)  # the same attempt goes on: its next line must not be glued to the torn one
    assert set(rows.completed(KEYS)) == kept
    rows.append(5, KEYS[5], output="after")
    assert set(journal(task, "1-2").completed(KEYS)) == kept | {5}
    assert outputs(rows)[5] == "after"


def test_every_row_is_in_the_file_at_once(tmp_path: Path) -> None:
    rows = journal(tmp_path)
    for n in range(3):
        rows.append(n, KEYS[n], output=n)
        assert len((tmp_path / "attempts/1-1/items.jsonl").read_bytes().splitlines()) == n + 1


def test_a_short_write_is_an_error_and_does_not_spoil_the_next_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = journal(tmp_path)
    rows.append(0, KEYS[0], output="whole")
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:9]))
    with pytest.raises(OSError, match="is the disk full"):
        rows.append(1, KEYS[1], output="cut")
    monkeypatch.undo()
    rows.append(2, KEYS[2], output="whole again")
    assert sorted(journal(tmp_path, "1-2").completed(KEYS)) == [0, 2]


def test_threads(tmp_path: Path) -> None:
    keys = [str(n) for n in range(400)]
    rows = journal(tmp_path)
    rows.completed(keys)

    def write(start: int) -> None:
        for n in range(start, 400, 4):
            rows.append(n, keys[n], output="x" * n)

    threads = [threading.Thread(target=write, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(row["output"]) for row in rows.items(400)] == list(range(400))


def test_usage_is_summed_over_the_rows_that_count(tmp_path: Path) -> None:
    fill(tmp_path, "1-1", {0: "a", 1: "b"})
    rows = journal(tmp_path, "1-2")
    rows.completed(KEYS)
    rows.append(1, KEYS[1], output="b again", usage={"tokens": 5, "seconds": 0.5, "engine": "x"})
    assert rows.usage(6) == {"tokens": 7, "seconds": 0.5}


def test_outputs_are_not_kept_in_memory(tmp_path: Path) -> None:
    path = fill(tmp_path, "1-1", {0: "first"})
    rows = journal(tmp_path, "1-2")
    done = rows.completed(KEYS)
    path.write_bytes(path.read_bytes().replace(b"first", b"FIRST"))
    assert done[0]["output"] == "FIRST"


def test_row_key() -> None:
    facts = {"prompt": "p", "model": "m", "revision": None, "sampling": {"a": 1, "b": 2.0}}
    key = row_key(**facts)
    assert len(key) == 64
    assert row_key(**{**facts, "sampling": {"b": 2.0, "a": 1}}) == key
    others = [{"prompt": "q"}, {"model": "n"}, {"revision": "main"}, {"sampling": {"a": 1}}, {"sampling": {}}]
    assert len({key, *(row_key(**{**facts, **other}) for other in others)}) == 6
