"""The rules of the bridge's stores; every implementation must pass the same contract."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mloc_prefect.bridge.memory import MemoryPublisher, MemoryTaskStore, MemoryWorkerRegistry
from mloc_prefect.bridge.ports import TASK_EVENTS
from mloc_prefect.bridge.records import ORIGINAL_KEYS, TaskRecord, WorkerRecord
from mloc_prefect.bridge.states import Mark, Phase, TaskStatus, allowed

PENDING = Mark(1, Phase.PENDING)
marks = st.builds(Mark, st.integers(1, 4), st.sampled_from(Phase))


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
    assert allowed(Mark(*old) if old else None, Mark(*new)) is expected


@given(old=marks, new=marks)
def test_no_step_can_be_taken_back(old: Mark, new: Mark):
    assert not (allowed(old, new) and allowed(new, old))


@given(steps=st.lists(marks, max_size=30))
def test_every_life_is_finite_and_ends_once(steps: list[Mark]):
    life = [Mark(1, Phase.PENDING)]
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
    assert "mark" not in shown
    assert (shown["retries"], shown["max_retries"], shown["attempts"], shown["max_attempts"]) == (0, 3, 0, 4)


@pytest.mark.parametrize(
    ("mark", "status", "retries", "attempts"),
    [
        (Mark(1, Phase.STARTED), "DISPATCHED", 0, 1),
        (Mark(3, Phase.WAITING), "WAITING", 2, 2),
        (Mark(4, Phase.FAILED), "FAILED", 4, 4),
        (Mark(2, Phase.DONE), "DONE", 1, 2),
    ],
)
def test_counts_of_both_generations(mark, status, retries, attempts):
    shown = record(mark=mark).to_dict()
    assert (shown["status"], shown["retries"], shown["attempts"]) == (status, retries, attempts)


# --- task store -------------------------------------------------------------------------------------------------------


@pytest.fixture
def publisher() -> MemoryPublisher:
    return MemoryPublisher()


@pytest.fixture
def store(publisher: MemoryPublisher) -> MemoryTaskStore:
    return MemoryTaskStore(publisher)


async def test_records_come_back_in_order_of_creation(store):
    await store.create([record("b", submission_id="s1"), record("a", submission_id="s1")])
    await store.create([record("c", submission_id="s2")])
    assert [entry.task_id for entry in await store.list()] == ["b", "a", "c"]
    assert [entry.task_id for entry in await store.list(submission_id="s1")] == ["b", "a"]
    assert await store.get("nobody") is None


async def test_a_submission_is_stored_whole_or_not_at_all(store):
    await store.create([record("a")])
    with pytest.raises(ValueError, match="task id taken: a"):
        await store.create([record("b"), record("a")])
    with pytest.raises(ValueError, match="task id taken: c"):
        await store.create([record("c"), record("c")])
    assert [entry.task_id for entry in await store.list()] == ["a"]


async def test_a_step_changes_the_record_and_sends_its_messages(store, publisher):
    await store.create([record()])
    message = {"type": "TASK_STARTED", "task_id": "t1"}
    moved = await store.transition("t1", Mark(1, Phase.STARTED), {"assigned_worker": "w"}, [(TASK_EVENTS, message)])
    assert moved == await store.get("t1")
    assert moved.assigned_worker == "w"
    assert publisher.sent == [(TASK_EVENTS, message)]


async def test_a_forbidden_step_changes_and_sends_nothing(store, publisher):
    await store.create([record(mark=Mark(1, Phase.DONE))])
    assert await store.transition("t1", Mark(1, Phase.FAILED), {"error": "late"}, [(TASK_EVENTS, {})]) is None
    assert await store.transition("unknown", Mark(1, Phase.FAILED)) is None
    assert (await store.get("t1")).error is None
    assert publisher.sent == []


async def test_publisher_counts_receivers(publisher):
    received: list[dict] = []
    publisher.subscribe(TASK_EVENTS, received.append)
    assert await publisher.publish(TASK_EVENTS, {"n": (1, 2)}) == 1
    assert await publisher.publish("elsewhere", {}) == 0
    assert received == [{"n": [1, 2]}]


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
