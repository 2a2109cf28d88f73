"""The end of a stage: what is told of a delivery that goes half well."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.artifacts import atomic
from mloc_prefect.artifacts.layout import RESPONSES
from mloc_prefect.artifacts.manifest import read_manifest
from mloc_prefect.artifacts.result_guard import async_result_lock, note_posted
from mloc_prefect.artifacts.transfer.delivery import HttpDestination
from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts
from mloc_prefect.flow import commit
from mloc_prefect.flow.commit import ComputedResult, ResultCommitter
from mloc_prefect.flow.fencing import NoFence

if TYPE_CHECKING:
    from pathlib import Path


async def test_files_that_a_destination_refuses_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is delivered all the same, without their URLs. [protocol 4.8]."""
    delivered: list[Any] = []

    async def refused(*_: Any, **__: Any) -> list[str]:
        return ["final_model.zip: status 413"]

    async def deliver(destination: HttpDestination, **_: Any) -> None:
        delivered.append(destination.url)

    monkeypatch.setattr(commit, "upload_files", refused)
    monkeypatch.setattr(commit, "deliver", deliver)
    attempt = tmp_path / "attempts" / "1-1"
    attempt.mkdir(parents=True)
    (attempt / "result.json").write_text(json.dumps({"ok": True}))
    committer = ResultCommitter(
        directory=tmp_path,
        task_id="t",
        name="t",
        required=(),
        destination=HttpDestination("http://127.0.0.1:1/r"),
        allowed=AllowedHosts(),
        fence=NoFence(),
    )
    computed = ComputedResult(
        spec_sha256="0", attempt_dir="1-1", attempt=1, run_count=1, path=str(attempt / "result.json")
    )
    told: list[str] = []
    await committer.commit(computed, worker_id="w", warn=told.append)
    assert told == ["final_model.zip: status 413"]
    assert delivered == ["http://127.0.0.1:1/r"]


def computed_at(home: Path) -> ComputedResult:
    """Return a result that an attempt has computed in the directory of a task."""
    attempt = home / "attempts" / "1-1"
    attempt.mkdir(parents=True)
    (attempt / "result.json").write_text(json.dumps({"own": True}))
    return ComputedResult(spec_sha256="0", attempt_dir="1-1", attempt=1, run_count=1, path=str(attempt / "result.json"))


def committer_of(home: Path, url: str | None = None) -> ResultCommitter:
    """Return a committer with an http destination, or without one."""
    destination = HttpDestination(url) if url else None
    return ResultCommitter(
        directory=home,
        task_id="t",
        name="t",
        required=(),
        destination=destination,
        allowed=AllowedHosts(),
        fence=NoFence(),
    )


def assert_true_manifest(home: Path) -> None:
    """Assert that the manifest says what `responses.json` is."""
    manifest = read_manifest(home)
    entry = manifest.entry(RESPONSES) if manifest else None
    assert entry is not None
    assert (entry.size, entry.sha256) == atomic.digest(home / RESPONSES)


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:1/r"])
async def test_a_result_that_was_posted_before_the_commit_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str | None
) -> None:
    async def none(*_: Any, **__: Any) -> list[str]:
        return []

    async def deliver(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is delivered for a task that was completed from outside")

    monkeypatch.setattr(commit, "upload_files", none)
    monkeypatch.setattr(commit, "deliver", deliver)
    computed = computed_at(tmp_path)
    atomic.write_json(tmp_path / RESPONSES, {"posted": True})
    note_posted(tmp_path)
    manifest = await committer_of(tmp_path, url).commit(computed, worker_id="w")
    assert manifest.engine == "outside"
    assert json.loads((tmp_path / RESPONSES).read_text()) == {"posted": True}
    assert_true_manifest(tmp_path)


async def test_a_commit_waits_for_a_result_that_is_being_posted(tmp_path: Path) -> None:
    computed = computed_at(tmp_path)
    async with async_result_lock(tmp_path):
        committing = asyncio.create_task(committer_of(tmp_path).commit(computed, worker_id="w"))
        await asyncio.sleep(0)
        atomic.write_json(tmp_path / RESPONSES, {"posted": True})
        note_posted(tmp_path)
        assert read_manifest(tmp_path) is None
    await committing
    assert_true_manifest(tmp_path)
    assert json.loads((tmp_path / RESPONSES).read_text()) == {"posted": True}
