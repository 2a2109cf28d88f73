"""Attempts at workers of the original protocol: what is made of what comes back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.errors import ExecutionError
from mloc_prefect.store.interfaces import TASK_EVENTS, WORKER_EVENTS
from tests.support.original_worker import hardware

if TYPE_CHECKING:
    pass
from tests.support.mloc_site import job, site, worker


async def test_a_task_runs_and_its_shared_result_is_taken(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.join()
        running = here.start(job(tmp_path))
        message = await here.message()
        assert message["assigned_worker"] == "w-a"
        await here.begins()
        here.writes({"ok": True, "model": "m", "items": []})
        await here.says("TASK_SUCCEEDED", result={})
        result = await running
        assert json.loads(Path(result.path).read_text()) == {"ok": True, "model": "m", "items": []}
        assert result.summary == {"engine": "original", "worker": "w-a", "model": "m"}
        assert result.delivered
        place = {"worker": "w-a", "protocol": "original", "flow_run": None}
        assert here.seen("placed") == [place | {"begun": False}, place | {"begun": True}]
        record = await here.stores.workers.get("w-a")
        assert record is not None
        assert record.status == "IDLE"
        sent = [(channel, m["type"], m.get("status"), "extra" in m) for channel, m in here.stores.publisher.sent[1:]]
        assert sent == [
            (WORKER_EVENTS, "STATUS", "RUNNING", False),
            (WORKER_EVENTS, "STATUS", "RUNNING", True),
            (TASK_EVENTS, "TASK_SUCCEEDED", None, False),
            (WORKER_EVENTS, "STATUS", "IDLE", False),
        ]


async def test_an_envelope_is_taken_out_and_left_in_its_place(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.join()
        running = here.start(job(tmp_path))
        await here.message()
        envelope = {"task_id": "t1", "worker_id": "w-a", "metadata": None, "received_at": "x", "result": {"a": 1}}
        here.writes(envelope)
        await here.says("TASK_SUCCEEDED")
        result = await running
        assert json.loads(Path(result.path).read_text()) == {"a": 1}
        assert json.loads((tmp_path / "t1" / "responses.json").read_text()) == envelope


async def test_a_result_of_an_earlier_attempt_does_not_count(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.join()
        what = job(tmp_path)
        here.writes({"training_successful": False})
        running = here.start(what)
        await here.message()
        await here.says("TASK_SUCCEEDED")
        result = await running
        kept = json.loads(Path(result.path).read_text())
        assert kept["worker_id"] == "w-a"
        assert "not shared" in kept["note"]
        assert json.loads((tmp_path / "t1" / "responses.json").read_text()) == kept
        assert [data["level"] for data in here.seen("log")] == ["warning"]


async def test_the_error_of_a_worker_is_handed_on_word_for_word(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.join()
        running = here.start(job(tmp_path))
        await here.message()
        await here.says("TASK_FAILED", error="spec.data is required.")
        with pytest.raises(ExecutionError, match=r"^spec\.data is required\.$") as caught:
            await running
        assert caught.value.retryable
        record = await here.stores.workers.get("w-a")
        assert record is not None
        assert record.status == "RUNNING"  # the worker itself says when it is free


async def test_late_and_foreign_events_are_ignored(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.join()
        running = here.start(job(tmp_path))
        message = await here.message()
        await here.begins()
        await here.says("TASK_FAILED", task_id="other")
        await here.says("TASK_FAILED", worker_id="w-z")
        await here.says("TASK_FAILED", payload={"dispatched_at": "an earlier time"})
        await asyncio.sleep(0.1)
        assert not running.done()
        here.writes({"ok": True})
        await here.says("TASK_SUCCEEDED", payload={"dispatched_at": message["dispatched_at"]})
        assert (await running).delivered


async def test_another_worker_is_preferred_after_a_failure(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.join(worker("w-a", hardware=hardware(cores=64)), worker("w-b"))
        running = here.start(job(tmp_path))
        assert (await here.message())["assigned_worker"] == "w-a"
        await here.says("TASK_FAILED")
        await asyncio.gather(running, return_exceptions=True)
        await here.rests()
        running = here.start(job(tmp_path, 2))
        assert (await here.message())["assigned_worker"] == "w-b"
        running.cancel()


async def test_the_only_worker_gets_a_failed_task_again(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.join()
        running = here.start(job(tmp_path))
        await here.message()
        await here.says("TASK_FAILED")
        await asyncio.gather(running, return_exceptions=True)
        running = here.start(job(tmp_path, 2))
        await asyncio.sleep(0.1)
        assert here.sent.empty()  # it has not said yet that it is free
        await here.rests()
        assert (await here.message())["assigned_worker"] == "w-a"
        running.cancel()


async def test_a_failed_worker_is_remembered_in_the_record(tmp_path: Path) -> None:
    from tests.support.records import record

    async with site(tmp_path) as here:
        await here.join(worker("w-a", hardware=hardware(cores=64)), worker("w-b"))
        await here.stores.tasks.create([record("t1", last_failed_worker="w-a")])
        running = here.start(job(tmp_path, 2))
        assert (await here.message())["assigned_worker"] == "w-b"
        running.cancel()
