"""The rules of the bridge's stores; every implementation must pass the same contract."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mloc_prefect.store.interfaces import TASK_EVENTS, WORKER_EVENTS
from mloc_prefect.store.memory.publisher import MemoryPublisher
from mloc_prefect.store.memory.service_leases import MemoryLeases
from mloc_prefect.store.memory.worker_registry import MemoryWorkerRegistry
from mloc_prefect.store.records import ORIGINAL_KEYS, TaskRecord, WorkerRecord
from mloc_prefect.store.states import Phase, StatusMark, TaskStatus, allowed

PENDING = StatusMark(1, Phase.PENDING)
marks = st.builds(StatusMark, st.integers(1, 4), st.sampled_from(Phase))


def record(task_id: str = "t1", **changes) -> TaskRecord:
    base = TaskRecord(
        task_id=task_id, raw_yaml="a: 1", parsed={"a": 1}, mark=PENDING, submitted_at="2026-01-01T00:00:00+00:00"
    )
    return replace(base, **changes)


# --- the transition table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (None, (1, Phase.PENDING), True),
        (None, (1, Phase.FAILED), True),
        ((1, Phase.PENDING), (1, Phase.WAITING), True),
        ((1, Phase.PENDING), (1, Phase.DISPATCHED), True),
        ((1, Phase.WAITING), (1, Phase.PENDING), False),
        ((1, Phase.DISPATCHED), (1, Phase.STARTED), True),
        ((1, Phase.STARTED), (1, Phase.DISPATCHED), False),
        ((1, Phase.STARTED), (1, Phase.STARTED), False),
        ((1, Phase.STARTED), (2, Phase.WAITING), True),
        ((2, Phase.WAITING), (1, Phase.STARTED), False),
        ((2, Phase.WAITING), (1, Phase.FAILED), False),
        ((2, Phase.WAITING), (2, Phase.STARTED), True),
        ((1, Phase.STARTED), (2, Phase.PENDING), False),
        ((1, Phase.DONE), (1, Phase.FAILED), False),
        ((1, Phase.DONE), (2, Phase.STARTED), False),
        ((1, Phase.FAILED), (1, Phase.DONE), False),
        ((1, Phase.CANCELLED), (1, Phase.DONE), False),
    ],
)
def test_steps(old, new, expected):
    assert allowed(StatusMark(*old) if old else None, StatusMark(*new)) is expected


@given(old=marks, new=marks)
def test_no_step_can_be_taken_back(old: StatusMark, new: StatusMark):
    assert not (allowed(old, new) and allowed(new, old))


@given(steps=st.lists(marks, max_size=30))
def test_every_life_is_finite_and_ends_once(steps: list[StatusMark]):
    life = [StatusMark(1, Phase.PENDING)]
    for step in steps:
        if allowed(life[-1], step):
            life.append(step)
    assert [mark.phase.terminal for mark in life].count(True) <= 1
    assert len(life) == len(set(life))
    assert [mark.attempt for mark in life] == sorted(mark.attempt for mark in life)


def test_clients_see_no_running_state():
    assert Phase.STARTED.status is TaskStatus.DISPATCHED
    assert {phase.status for phase in Phase} == set(TaskStatus)


# --- records ----------------------------------------------------------------------------------------------------------


def test_record_shows_the_original_keys_first_and_in_order():
    shown = record(depends_on=("t0",)).to_dict()
    assert tuple(shown)[: len(ORIGINAL_KEYS)] == ORIGINAL_KEYS
    assert shown["depends_on"] == ["t0"]
    assert not {"mark", "name", "protocol", "flow_run"} & shown.keys()
    assert (shown["retries"], shown["max_retries"], shown["attempts"], shown["max_attempts"]) == (0, 3, 0, 4)


@pytest.mark.parametrize(
    ("mark", "status", "retries", "attempts"),
    [
        (StatusMark(1, Phase.STARTED), "DISPATCHED", 0, 1),
        (StatusMark(3, Phase.WAITING), "WAITING", 2, 2),
        (StatusMark(4, Phase.FAILED), "FAILED", 4, 4),
        (StatusMark(2, Phase.DONE), "DONE", 1, 2),
    ],
)
def test_counts_of_both_generations(mark, status, retries, attempts):
    shown = record(mark=mark).to_dict()
    assert (shown["status"], shown["retries"], shown["attempts"]) == (status, retries, attempts)


@pytest.mark.parametrize(
    ("phase", "dispatched_ts", "retries", "attempts"),
    [
        (Phase.FAILED, None, 0, 0),
        (Phase.CANCELLED, None, 0, 0),
        (Phase.DONE, None, 0, 0),
        (Phase.FAILED, 5.0, 1, 1),
        (Phase.CANCELLED, 5.0, 0, 1),
        (Phase.DONE, 5.0, 0, 1),
    ],
)
def test_a_task_that_ended_before_it_had_a_worker_made_no_attempt(phase, dispatched_ts, retries, attempts):
    entry = record(mark=StatusMark(1, phase), dispatched_ts=dispatched_ts)
    assert (entry.retries, entry.attempts) == (retries, attempts)


def test_a_record_goes_by_its_name_the_submission_s_and_the_stage_s():
    entry = record(name="pipe:first", graph_node_name="first")
    assert [entry.goes_by(name) for name in ("pipe:first", "pipe", "first", "second", "")] == [True] * 3 + [False] * 2


# --- messages ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def publisher() -> MemoryPublisher:
    return MemoryPublisher()


async def test_publisher_counts_receivers(publisher):
    received: list[dict] = []
    publisher.subscribe(TASK_EVENTS, received.append)
    assert await publisher.publish(TASK_EVENTS, {"n": (1, 2)}) == 1
    assert await publisher.publish("elsewhere", {}) == 0
    assert received == [{"n": [1, 2]}]


async def test_a_listener_hears_its_channels_while_it_listens(publisher):
    await publisher.publish(TASK_EVENTS, {"n": 0})
    async with publisher.listen(TASK_EVENTS, WORKER_EVENTS) as heard:
        for channel, n in ((TASK_EVENTS, 1), ("elsewhere", 2), (WORKER_EVENTS, 3)):
            await publisher.publish(channel, {"n": n})
        assert [await anext(heard), await anext(heard)] == [(TASK_EVENTS, {"n": 1}), (WORKER_EVENTS, {"n": 3})]
    assert await publisher.publish(TASK_EVENTS, {}) == 0


# --- leases -----------------------------------------------------------------------------------------------------------


async def test_a_lease_has_one_holder_and_each_holder_a_higher_number():
    now = [0.0]
    leases = MemoryLeases(clock=lambda: now[0])
    first = await leases.acquire("bridge", "a", ttl=10)
    assert first is not None
    assert await leases.acquire("bridge", "b", ttl=10) is None
    now[0] = 9
    assert await leases.acquire("bridge", "a", ttl=10) == first
    now[0] = 18
    assert not await leases.release("bridge", "b")
    assert leases.valid(first)
    now[0] = 19
    second = await leases.acquire("bridge", "b", ttl=10)
    assert second is not None
    assert second.number > first.number
    assert not leases.valid(first)
    assert await leases.release("bridge", "b")
    assert (await leases.acquire("bridge", "a", ttl=10)).number > second.number


# --- worker registry --------------------------------------------------------------------------------------------------


async def test_worker_is_stale_after_its_time_without_heartbeat():
    now = [0.0]
    registry = MemoryWorkerRegistry(clock=lambda: now[0])
    await registry.register(WorkerRecord(worker_id="w", status="IDLE"), ttl=10)
    now[0] = 9
    assert not (await registry.get("w")).stale
    assert await registry.heartbeat("w", ttl=10)
    now[0] = 18.9
    assert not (await registry.get("w")).stale
    now[0] = 19
    assert (await registry.list())[0].stale


async def test_unknown_worker_gets_no_ghost_record():
    registry = MemoryWorkerRegistry()
    assert not await registry.set_status("ghost", "IDLE")
    assert not await registry.heartbeat("ghost", ttl=1)
    assert await registry.get("ghost") is None
    assert await registry.list() == []


async def test_worker_can_change_and_leave():
    registry = MemoryWorkerRegistry()
    for name in ("w2", "w1"):
        await registry.register(WorkerRecord(worker_id=name, tags=("cpu",)), ttl=10)
    assert await registry.set_status("w1", "RUNNING")
    assert [worker.worker_id for worker in await registry.list()] == ["w1", "w2"]
    shown = (await registry.get("w1")).to_dict()
    assert (shown["status"], shown["tags"], shown["stale"]) == ("RUNNING", ["cpu"], False)
    assert await registry.remove("w1")
    assert not await registry.remove("w1")


async def test_only_a_stale_worker_is_removed_when_that_was_asked(publisher):
    now = [0.0]
    registry = MemoryWorkerRegistry(clock=lambda: now[0], publisher=publisher)
    await registry.register(WorkerRecord(worker_id="w"), ttl=10)
    gone = [(WORKER_EVENTS, {"type": "UNREGISTER", "worker_id": "w"})]
    assert not await registry.remove("w", only_stale=True, messages=gone)
    assert publisher.sent == []
    now[0] = 10
    assert await registry.remove("w", only_stale=True, messages=gone)
    assert publisher.sent == gone
