"""The lock of a task's result, and what it knows of `responses.json`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.artifacts import atomic
from mloc_prefect.artifacts.layout import RESPONSES
from mloc_prefect.artifacts.manifest import Manifest, commit_manifest, supersede
from mloc_prefect.artifacts.result_guard import (
    async_result_lock,
    holds_result,
    is_committed,
    is_posted,
    note_posted,
    result_lock,
)
from mloc_prefect.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path


async def test_one_at_a_time_also_across_threads(tmp_path: Path) -> None:
    home, order = tmp_path / "task", list[str]()

    def later() -> None:
        with result_lock(home):
            order.append("thread")

    async with async_result_lock(home):
        thread = asyncio.create_task(asyncio.to_thread(later))
        await asyncio.sleep(0)
        order.append("first")
    await thread
    async with async_result_lock(home):
        order.append("last")
    assert order == ["first", "thread", "last"]


def test_the_lock_goes_back_when_its_block_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"), result_lock(tmp_path):
        raise ValueError("x")
    with result_lock(tmp_path):
        pass


def test_where_nothing_can_be_written_there_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot write"), result_lock(tmp_path / "file" / "task"):
        pass


def test_a_posted_result_is_known_until_another_takes_its_place(tmp_path: Path) -> None:
    assert not is_posted(tmp_path)
    atomic.write_json(tmp_path / RESPONSES, {"result": 1})
    assert not is_posted(tmp_path)
    note_posted(tmp_path)
    assert is_posted(tmp_path)
    atomic.write_json(tmp_path / RESPONSES, {"result": 2})
    assert not is_posted(tmp_path)


def test_a_task_that_runs_again_forgets_what_was_posted(tmp_path: Path) -> None:
    atomic.write_json(tmp_path / RESPONSES, {})
    note_posted(tmp_path)
    commit_manifest(tmp_path, Manifest(task_id="t", generated_at="now", entries=(), spec_sha256="0"))
    assert is_committed(tmp_path)
    supersede(tmp_path)
    assert not is_posted(tmp_path)
    assert not is_committed(tmp_path)


@pytest.mark.parametrize("content", [b'{"a": [1]}', b'{"task_id": "t", "worker_id": null, "result": {"a": [1]}}'])
def test_a_result_is_found_bare_and_in_its_envelope(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RESPONSES).write_bytes(content)
    assert holds_result(tmp_path, {"a": [1]})
    assert not holds_result(tmp_path, {"a": [2]})


@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
def test_what_is_no_result_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RESPONSES).write_bytes(content)
    assert not holds_result(tmp_path, {})
