"""Workers and messages that get lost, and workers that have one task at a time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.errors import ExecutionError, StoreError
from mloc_prefect.mloc_workers.mloc_dispatcher import MlocDispatcher
from mloc_prefect.mloc_workers.worker_session import lease_name
from mloc_prefect.store.interfaces import TASKS, WORKER_EVENTS
from tests.support.original_worker import hardware

if TYPE_CHECKING:
    pass
from tests.support.mloc_site import IMPATIENT, QUICK, job, site, worker

# --- workers and messages that get lost -------------------------------------------------------------------------------


async def test_a_message_that_nobody_hears_is_sent_again(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.join(hears=False)
        running = here.start(job(tmp_path))
        await here.told("log")
        assert here.seen("placed") == []
        assert "no subscriber received the message for worker w-a" in here.seen("log")[0]["message"]
        here.stores.publisher.subscribe(TASKS, here.sent.put_nowait)
        await here.message()
        here.writes({"ok": True})
        await here.says("TASK_SUCCEEDED")
        assert (await running).delivered


async def test_a_worker_that_registers_before_it_listens_gets_the_message_again(tmp_path: Path) -> None:
    async with site(tmp_path, IMPATIENT) as here:
        await here.join()  # somebody else listens, so a count of receivers tells nothing
        running = here.start(job(tmp_path))
        await here.message()
        second = await here.message()
        assert second["task_id"] == "t1"
        assert "did not begin within 0.3 s" in here.seen("log")[0]["message"]
        await here.begins()
        await asyncio.sleep(0.4)
        assert here.sent.empty()
        here.writes({"ok": True})
        await here.says("TASK_SUCCEEDED")
        assert (await running).delivered


async def test_a_vanished_workers_task_goes_to_another_one_at_once(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.join(worker("w-a", hardware=hardware(cores=64)), worker("w-b"))
        running = here.start(job(tmp_path))
        assert (await here.message())["assigned_worker"] == "w-a"
        await here.begins()
        await here.stores.workers.remove("w-a", messages=[(WORKER_EVENTS, {"type": "UNREGISTER", "worker_id": "w-a"})])
        assert (await here.message())["assigned_worker"] == "w-b"
        await here.says("TASK_SUCCEEDED", worker_id="w-a")  # it was not dead after all
        await asyncio.sleep(0.05)
        assert not running.done()
        here.writes({"by": "w-b"})
        await here.says("TASK_SUCCEEDED", worker_id="w-b")
        assert (await running).summary["worker"] == "w-b"


@pytest.mark.parametrize("how", ["expired", "restarted"])
async def test_a_vanished_worker_costs_the_attempt_when_no_other_is_free(tmp_path: Path, how: str) -> None:
    async with site(tmp_path) as here:
        await here.join()
        running = here.start(job(tmp_path))
        await here.message()
        await here.begins()
        if how == "expired":
            await here.stores.workers.remove("w-a")
        else:
            await here.stores.workers.register(worker(started_at="t1"), ttl=60)
        with pytest.raises(ExecutionError, match=r"is lost|started again") as caught:
            await running
        assert caught.value.retryable


async def test_an_outcome_whose_message_was_missed_is_read_from_registry_and_result(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.join()
        running = here.start(job(tmp_path))
        await here.message()
        await here.begins()
        here.writes({"ok": True})
        await here.stores.workers.set_status("w-a", "IDLE", extra={"last_task": "t1"})
        assert (await running).delivered


async def test_a_missed_failure_is_read_from_the_result(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.join()
        running = here.start(job(tmp_path))
        await here.message()
        await here.begins()
        here.writes({"training_successful": False, "error_message": "CUDA error"})
        await here.stores.workers.set_status("w-a", "IDLE", extra={"last_task": "t1"})
        with pytest.raises(ExecutionError, match="CUDA error"):
            await running


async def test_a_store_that_does_not_serve_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with site(tmp_path) as here:
        await here.join()
        registry, answer = here.stores.workers, type(here.stores.workers).list

        async def fail(_: object) -> None:
            raise StoreError("Redis at localhost:6379 does not serve: down")

        monkeypatch.setattr(type(registry), "list", fail)
        running = here.start(job(tmp_path))
        await here.told("waiting")
        assert here.seen("waiting") == [{"reason": "Redis at localhost:6379 does not serve: down"}]
        monkeypatch.setattr(type(registry), "list", answer)
        await here.message()
        running.cancel()


# --- one task at a time -----------------------------------------------------------------------------------------------


async def test_two_dispatchers_never_give_one_worker_two_tasks(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        other = MlocDispatcher(here.stores, tmp_path, QUICK)
        await here.join()
        jobs = [job(tmp_path, task_id=f"t{i}") for i in range(6)]
        places = [here.dispatcher, other]
        running = [asyncio.create_task(places[i % 2].dispatch(j, on_event=lambda _: None)) for i, j in enumerate(jobs)]
        done: list[str] = []
        for _ in jobs:
            task_id = (await here.message())["task_id"]
            await here.begins(task_id=task_id)
            await asyncio.sleep(0.05)
            assert here.sent.empty()
            here.writes({"ok": True}, task_id)
            await here.says("TASK_SUCCEEDED", task_id=task_id)
            await here.rests(task_id=task_id)
            done.append(task_id)
        await asyncio.gather(*running)
        assert sorted(done) == [f"t{i}" for i in range(6)]
        await other.close()


async def test_a_cancelled_task_keeps_its_worker_until_it_ends(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.join()
        first = here.start(job(tmp_path))
        await here.message()
        await here.begins()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        second = here.start(job(tmp_path, task_id="t2"))
        await asyncio.sleep(0.1)
        assert here.sent.empty()
        await here.says("TASK_SUCCEEDED")
        assert (await here.message())["task_id"] == "t2"
        second.cancel()


async def test_a_task_beyond_its_time_fails_and_keeps_its_worker(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.join()
        running = here.start(job(tmp_path, timeout=0.1))
        await here.message()
        await here.begins()
        with pytest.raises(ExecutionError, match=r"did not end within 0\.1 s") as caught:
            await running
        assert caught.value.failure is not None
        assert caught.value.failure.kind == "timeout"
        assert await here.stores.leases.acquire(lease_name("w-a"), "another", ttl=1) is None


async def test_a_new_coordinator_takes_over_a_task_at_its_worker(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.join(worker(status="RUNNING", running="t1", last_task="t0"))
        running = here.start(job(tmp_path))
        await here.told("placed")
        await asyncio.sleep(0.1)
        assert here.sent.empty()
        assert here.seen("placed")[-1]["begun"]
        here.writes({"ok": True})
        await here.says("TASK_SUCCEEDED")
        assert (await running).delivered


async def test_a_worker_that_a_dead_dispatcher_marked_is_used_again(tmp_path: Path) -> None:
    async with site(tmp_path, IMPATIENT) as here:
        await here.join(worker(status="RUNNING", running="t0", last_task="t0"))
        running = here.start(job(tmp_path))
        await asyncio.sleep(0.1)
        assert here.sent.empty()
        assert (await here.message())["task_id"] == "t1"
        running.cancel()


async def test_a_status_for_a_worker_that_is_gone_makes_no_ghost(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.join()
        running = here.start(job(tmp_path))
        await here.message()
        here.writes({"ok": True})
        await here.stores.workers.remove("w-a")
        await here.says("TASK_SUCCEEDED")
        assert (await running).delivered
        assert await here.stores.workers.get("w-a") is None
