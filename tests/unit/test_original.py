"""Attempts at workers of the original protocol: what is sent, and what is made of what comes back."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.bridge.original import OriginalDispatcher
from mloc_prefect.bridge.original_choice import choose_worker
from mloc_prefect.bridge.original_claim import Times, lease_name
from mloc_prefect.bridge.original_messages import News, read_news, task_message
from mloc_prefect.bridge.ports import TASK_EVENTS, TASKS, WORKER_EVENTS
from mloc_prefect.bridge.records import WorkerRecord
from mloc_prefect.bridge.stores import memory_stores
from mloc_prefect.errors import ExecutionError, StoreError
from mloc_prefect.execution.protocol import ExecutionRequest
from mloc_prefect.orchestrate.dispatch import StageJob
from mloc_prefect.plan.model import ResourceRequest
from mloc_prefect.settings import get_settings
from mloc_prefect.tasks.base import ExecutorRef
from tests.support.original_worker import hardware

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mloc_prefect.bridge.stores import Stores

QUICK = Times(acknowledge=30.0, look=0.03, lease=5.0, result=0.05, again=0.02, close=0.1)
IMPATIENT = replace(QUICK, acknowledge=0.3)
GIB = 1 << 30


def worker(worker_id: str = "w-a", **changes: Any) -> WorkerRecord:
    given: dict[str, Any] = {"status": "IDLE", "hardware": hardware(), "started_at": "t0"} | changes
    return WorkerRecord(worker_id=worker_id, **given)


def job(root: Path, attempt: int = 1, *, task_id: str = "t1", spec: dict | None = None, **changes: Any) -> StageJob:
    task = root / task_id
    directory = task / "attempts" / f"1-{attempt}"
    directory.mkdir(parents=True, exist_ok=True)
    request = ExecutionRequest(
        task_id, "pipe:first", "inference", "x:Y", spec or {"data": {}}, str(task), str(directory), attempt=attempt
    )
    given = {"executor": ExecutorRef("x:Y"), "resources": ResourceRequest()} | changes
    return StageJob(request=request, **given)


@dataclass
class Site:
    """Workers in memory, played by the test."""

    stores: Stores
    dispatcher: OriginalDispatcher
    root: Path
    sent: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    async def join(self, *workers: WorkerRecord, hears: bool = True) -> None:
        if hears:
            self.stores.publisher.subscribe(TASKS, self.sent.put_nowait)
        for record in workers or (worker(),):
            await self.stores.workers.register(record, ttl=60)

    def start(self, what: StageJob) -> asyncio.Task[Any]:
        def note(event: Any) -> None:
            self.events.append((event.kind, event.data))

        return asyncio.create_task(self.dispatcher.dispatch(what, on_event=note))

    async def message(self) -> dict[str, Any]:
        return await asyncio.wait_for(self.sent.get(), 60)

    async def begins(self, worker_id: str = "w-a", task_id: str = "t1") -> None:
        extra = {"task_id": task_id}
        message = {"type": "STATUS", "worker_id": worker_id, "status": "RUNNING", "extra": extra}
        await self.stores.workers.set_status(worker_id, "RUNNING", extra=extra, messages=[(WORKER_EVENTS, message)])

    async def says(self, kind: str, worker_id: str = "w-a", task_id: str = "t1", **more: Any) -> None:
        message = {"type": kind, "worker_id": worker_id, "task_id": task_id, **more}
        await self.stores.publisher.publish(TASK_EVENTS, message)

    async def rests(self, worker_id: str = "w-a", task_id: str = "t1") -> None:
        extra = {"last_task": task_id}
        message = {"type": "STATUS", "worker_id": worker_id, "status": "IDLE", "extra": extra}
        await self.stores.workers.set_status(worker_id, "IDLE", extra=extra, messages=[(WORKER_EVENTS, message)])

    def writes(self, content: Any, task_id: str = "t1") -> None:
        (self.root / task_id / "responses.json").write_text(json.dumps(content))

    async def told(self, kind: str) -> None:
        async with asyncio.timeout(60):
            while not self.seen(kind):
                await asyncio.sleep(0.01)

    def seen(self, kind: str) -> list[dict[str, Any]]:
        return [data for found, data in self.events if found == kind]


@asynccontextmanager
async def site(root: Path, times: Times = QUICK) -> AsyncIterator[Site]:
    stores = memory_stores()
    dispatcher = OriginalDispatcher(stores, root, times)
    try:
        yield Site(stores, dispatcher, root)
    finally:
        await dispatcher.close()


# --- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channel", "message", "expected"),
    [
        (TASK_EVENTS, {"type": "TASK_SUCCEEDED", "task_id": "t", "result": {}}, News("succeeded", "w", "t")),
        (TASK_EVENTS, {"type": "task_failed", "task_id": "t", "error": "no"}, News("failed", "w", "t", "no")),
        (TASK_EVENTS, {"type": "TASK_FAILED", "task_id": "t"}, News("failed", "w", "t", "worker failed")),
        (
            TASK_EVENTS,
            {"type": "TASK_SUCCEEDED", "task_id": "t", "status": None, "payload": {"dispatched_at": "d"}},
            News("succeeded", "w", "t", None, "d"),
        ),
        (TASK_EVENTS, {"type": "TASK_STARTED", "task_id": "t", "payload": {}}, News("began", "w", "t")),
        (TASK_EVENTS, {"type": "TASK_SUCCEEDED", "task_id": "  "}, None),
        (TASK_EVENTS, {"type": "TASK_REQUEUED", "task_id": "t"}, None),
        (WORKER_EVENTS, {"type": "STATUS", "status": "RUNNING", "extra": {"task_id": "t"}}, News("began", "w", "t")),
        (WORKER_EVENTS, {"type": "STATUS", "status": "RUNNING", "payload": {"task_id": "t"}}, News("began", "w", "t")),
        (WORKER_EVENTS, {"type": "STATUS", "status": "RUNNING"}, None),
        (WORKER_EVENTS, {"type": "STATUS", "status": "IDLE", "extra": {"last_task": "t"}}, News("idle", "w", "t")),
        (WORKER_EVENTS, {"type": "UNREGISTER", "payload": {}}, News("gone", "w")),
        (WORKER_EVENTS, {"type": "REGISTER", "status": "STARTING"}, News("registered", "w")),
        (WORKER_EVENTS, {"type": "HEARTBEAT", "metrics": {}}, None),
        (TASKS, {"type": "TASK_SUCCEEDED", "task_id": "t"}, None),
    ],
)
def test_messages_of_both_generations_are_read(channel: str, message: dict, expected: News | None) -> None:
    assert read_news(channel, {"worker_id": "w", **message}) == expected
    assert read_news(channel, message) is None


def test_a_worker_gets_the_whole_document(tmp_path: Path) -> None:
    document = {"apiVersion": "mloc/v1", "kind": "InferenceTask", "metadata": {"name": "pipe:first"}}
    destination = {"type": "http", "url": "http://x/api/v1/results", "headers": {"Authorization": "Bearer t"}}
    spec = {"data": {"items": ["a"]}, "output": {"destination": destination}}
    message = task_message(job(tmp_path, spec=spec, document=document), "w-a")
    assert list(message) == ["task_id", "task", "task_type", "assigned_worker", "dispatched_at", "parent_task_id"]
    assert message["task"] == {**document, "spec": spec}
    assert (message["task_type"], message["assigned_worker"], message["parent_task_id"]) == ("inference", "w-a", None)


def test_upstream_results_are_there_for_dependants_only(tmp_path: Path) -> None:
    assert "_upstreamResults" not in task_message(job(tmp_path), "w")["task"]["spec"]
    assert task_message(job(tmp_path, results={}), "w")["task"]["spec"]["_upstreamResults"] == {}
    results = {"first": {"result": {"ok": True}}}
    assert task_message(job(tmp_path, results=results), "w")["task"]["spec"]["_upstreamResults"] == results


def test_a_shard_names_its_parent(tmp_path: Path) -> None:
    shard = {"index": 1, "total": 3, "parent_task_id": "p"}
    message = task_message(job(tmp_path, spec={"shard": shard}), "w")
    assert {k: message[k] for k in ("parent_task_id", "shard_index", "shard_total")} == {
        "parent_task_id": "p",
        "shard_index": 1,
        "shard_total": 3,
    }


# --- choice -----------------------------------------------------------------------------------------------------------


def names(choice: Any) -> list[str]:
    return [record.worker_id for record in choice.ready]


def test_only_live_idle_fitting_workers_of_the_original_protocol_are_chosen() -> None:
    workers = [
        worker("ours", protocol="ours"),
        worker("stale", stale=True),
        worker("off", elastic_disabled=True),
        worker("starting", status="STARTING"),
        worker("running", status="RUNNING"),
        worker("small", hardware=hardware(cores=1)),
        worker("taken"),
        worker("good"),
    ]
    assert names(choose_worker(workers, ResourceRequest(cpus=2), engaged={"taken"})) == ["good"]


def test_gpus_are_matched_by_name_count_and_by_memory_where_it_is_known() -> None:
    first = worker("first", hardware=hardware(gpus=("NVIDIA A100-SXM4-80GB",)))
    later = worker("later", hardware=hardware(gpus=("NVIDIA A100", "NVIDIA A100"), gpu_memory=40 * GIB))
    assert names(choose_worker([first, later], ResourceRequest(gpu_count=1, gpu_type="a100"))) == ["later", "first"]
    assert names(choose_worker([first, later], ResourceRequest(gpu_count=2))) == ["later"]
    assert names(choose_worker([first, later], ResourceRequest(gpu_count=1, gpu_memory_bytes=80 * GIB))) == ["first"]
    assert names(choose_worker([first, later], ResourceRequest(gpu_count=1, gpu_type="h100"))) == []


def test_the_best_worker_comes_first_while_there_are_enough() -> None:
    workers = [
        worker("cpu"),
        worker("big", hardware=hardware(cores=64)),
        worker("gpu", hardware=hardware(gpus=("l4",))),
    ]
    assert names(choose_worker(workers, ResourceRequest())) == ["gpu", "big", "cpu"]
    assert names(choose_worker(workers, ResourceRequest(), demand=10)) == ["cpu", "big", "gpu"]


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, "gpu"),
        ({"LOW_AVAIL_RATIO": "1.6"}, "cpu"),  # the two count 1.6
        ({"LOW_AVAIL_RATIO": "1.6", "GPU_WEIGHT": "1.1"}, "gpu"),
        ({"LOW_AVAIL_RATIO": "1.6", "CPU_ONLY_WEIGHT": "0.7"}, "gpu"),
        ({"CPU_ONLY_WEIGHT": "0", "GPU_WEIGHT": "0"}, "cpu"),
    ],
)
async def test_the_site_says_when_the_best_worker_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], first: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stores = memory_stores()
    dispatcher = OriginalDispatcher.of(stores, get_settings())
    for one in (worker("cpu"), worker("gpu", hardware=hardware(gpus=("l4",)))):
        await stores.workers.register(one, ttl=60)
    assert names(await dispatcher.choice(ResourceRequest()))[0] == first
    waiting = asyncio.create_task(dispatcher.dispatch(job(tmp_path), on_event=lambda _: None))
    async with asyncio.timeout(5):
        while not (told := [m["assigned_worker"] for name, m in stores.publisher.sent if name == TASKS]):  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)
    assert told[0] == first
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await dispatcher.close()


def test_a_worker_that_failed_comes_last_but_stays() -> None:
    workers = [worker("a", hardware=hardware(cores=64)), worker("b")]
    assert names(choose_worker(workers, ResourceRequest(), avoid={"a"})) == ["b", "a"]
    assert names(choose_worker(workers[:1], ResourceRequest(), avoid={"a"})) == ["a"]


@pytest.mark.parametrize(
    ("workers", "text"),
    [
        ([], "needs 2 cpu; no worker of the original protocol is registered"),
        ([worker(stale=True)], "1 worker of the original protocol registered, none alive and switched on"),
        ([worker(hardware=hardware(cores=1))], "none fits (w-a: needs 2 cpu, this machine has 1 cpu)"),
        ([worker(status="RUNNING")], "1 worker of the original protocol fits: w-a is RUNNING"),
    ],
)
def test_why_none_is_ready_is_said_in_words(workers: list[WorkerRecord], text: str) -> None:
    assert text in choose_worker(workers, ResourceRequest(cpus=2)).why


# --- outcomes ---------------------------------------------------------------------------------------------------------


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


# --- workers and messages that get lost -------------------------------------------------------------------------------


async def test_a_message_that_nobody_hears_is_sent_again(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.join(hears=False)
        running = here.start(job(tmp_path))
        await here.told("log")
        assert here.seen("placed") == []
        assert "nobody heard the message for worker w-a" in here.seen("log")[0]["message"]
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
        with pytest.raises(ExecutionError, match=r"has gone|started again") as caught:
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
        other = OriginalDispatcher(here.stores, tmp_path, QUICK)
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
