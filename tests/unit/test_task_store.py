"""The rules of task store and journal, on the twins in memory (the real ones: tests/integration/test_store.py)."""

from __future__ import annotations

import pytest

from mloc_prefect.bridge.memory import MemoryLeases, MemoryPublisher
from mloc_prefect.bridge.memory_tasks import MemoryJournal, MemoryTaskStore
from mloc_prefect.bridge.ports import TASK_EVENTS
from mloc_prefect.bridge.states import Mark, Phase, TaskStatus
from mloc_prefect.errors import ConflictError, FencedError
from tests.support.records import record, submission, submit

STARTED = Mark(1, Phase.STARTED)


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def publisher() -> MemoryPublisher:
    return MemoryPublisher()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def journal(clock: Clock) -> MemoryJournal:
    return MemoryJournal(clock)


@pytest.fixture
def store(publisher: MemoryPublisher, journal: MemoryJournal, clock: Clock) -> MemoryTaskStore:
    return MemoryTaskStore(publisher, journal, clock=clock)


def ids(records) -> list[str]:
    return [entry.task_id for entry in records]


# --- submissions ------------------------------------------------------------------------------------------------------


async def test_records_come_back_in_order_of_creation(store):
    await submit(store, "s1", "b", "a")
    await submit(store, "s2", "c")
    assert ids(await store.list()) == ["b", "a", "c"]
    assert ids(await store.list(submission_id="s1")) == ["b", "a"]
    assert list(await store.get_many(["c", "nobody", "b"])) == ["c", "b"]
    assert await store.get("nobody") is None
    assert await store.submission("nobody") is None


async def test_a_submission_is_stored_whole_or_not_at_all(store, journal):
    await submit(store, "s1", "a")
    with pytest.raises(ValueError, match="task id taken: a"):
        await submit(store, "s2", "b", "a")
    with pytest.raises(ValueError, match="task id taken: c"):
        await submit(store, "s3", "c", "c")
    assert ids(await store.list()) == ["a"]
    assert await store.submission("s2") is None
    assert await journal.depth() == 1


async def test_a_key_that_is_used_again_gives_the_earlier_submission(store, journal, clock):
    first = await submit(store, "s1", "a", idempotency_key="k", digest="d")
    assert await submit(store, "s2", "b", idempotency_key="k", digest="d") == first
    with pytest.raises(ConflictError, match="the idempotency key 'k' was used for another submission"):
        await submit(store, "s3", "c", idempotency_key="k", digest="other")
    assert ids(await store.list()) == ["a"]
    assert await journal.depth() == 1
    clock.now += 24 * 3600
    assert (await submit(store, "s3", "c", idempotency_key="k", digest="other")).submission_id == "s3"


async def test_a_submission_knows_its_run_and_that_it_was_cancelled(store):
    await submit(store, "s1", "a")
    await store.dispatched("s1", "run")
    await store.request_cancel("s1")
    await store.dispatched("nobody", "run")
    found = await store.submission("s1")
    assert (found.flow_run, found.cancelled) == ("run", True)


async def test_records_of_runs_started_elsewhere_are_added_once_and_in_their_place(store, journal, clock):
    await submit(store, "s1", "x")
    old = submission("s0", "b", "a")
    records = [record(task_id, submission_id="s0", submitted_ts=clock.now - 60) for task_id in ("a", "b")]
    assert await store.create(records[:1], old) == ("a",)
    assert await store.create(records, old) == ("b",)
    assert await store.create(records) == ()
    assert ids(await store.list()) == ["b", "a", "x"]
    assert await store.submission("s0") == old
    assert await journal.depth() == 1
    await store.create([record("single")])
    assert ids(await store.list())[-1] == "single"


# --- lists ------------------------------------------------------------------------------------------------------------


async def test_pages_and_filters(store):
    for number in range(4):
        await submit(store, f"s{number}", f"t{number}a", f"t{number}b", name=f"n{number}")
    assert ids(await store.page(limit=3)) == ["t0a", "t0b", "t1a"]
    assert ids(await store.page(after="t1a", limit=2)) == ["t1b", "t2a"]
    assert ids(await store.page(newest_first=True, limit=2)) == ["t3b", "t3a"]
    assert ids(await store.page(newest_first=True, after="t0b")) == ["t0a"]
    assert ids(await store.page(after="nobody")) == []
    assert ids(await store.page(name="n2")) == ["t2a", "t2b"]
    assert ids(await store.page(name="t2b")) == ["t2b"]
    assert ids(await store.page(task_type="sft")) == []
    assert len(await store.page(task_type="echo")) == 8
    await store.transition("t1b", STARTED)
    assert ids(await store.page(status=TaskStatus.DISPATCHED)) == ["t1b"]
    assert ids(await store.page(status=TaskStatus.PENDING, after="t1b", limit=1)) == ["t2a"]
    assert await store.counts() == {status: {"DISPATCHED": 1, "PENDING": 7}.get(status, 0) for status in TaskStatus}


# --- steps ------------------------------------------------------------------------------------------------------------


async def test_a_step_changes_the_record_and_sends_its_messages(store, publisher):
    await submit(store, "s1", "t1")
    message = {"type": "TASK_STARTED", "task_id": "t1"}
    moved = await store.transition("t1", STARTED, {"assigned_worker": "w"}, [(TASK_EVENTS, message)], add={"n": 1.5})
    assert moved == (await store.get_many(["t1"], brief=True))["t1"]
    assert (moved.raw_yaml, moved.parsed) == ("", {})
    assert (await store.get("t1")).raw_yaml == "a: 1"
    assert moved.assigned_worker == "w"
    assert publisher.sent == [(TASK_EVENTS, message)]
    await store.transition("t1", Mark(1, Phase.DONE), add={"n": 1, "m": 2})
    assert await store.tally() == {"n": 2.5, "m": 2}


async def test_a_forbidden_step_changes_and_sends_nothing(store, publisher):
    await store.create([record("t1", mark=Mark(1, Phase.DONE))])
    failed = Mark(1, Phase.FAILED)
    assert await store.transition("t1", failed, {"error": "late"}, [(TASK_EVENTS, {})], add={"n": 1}) is None
    assert await store.transition("unknown", failed) is None
    assert (await store.get("t1")).error is None
    assert publisher.sent == []
    assert await store.tally() == {}


async def test_a_note_changes_only_a_record_that_stands_where_it_should(store, publisher):
    await submit(store, "s1", "t1")
    waiting = Mark(1, Phase.WAITING)
    assert await store.note("t1", waiting, {"error": "no GPU"}, [(TASK_EVENTS, {})]) is None
    await store.transition("t1", waiting)
    assert (await store.note("t1", waiting, {"error": "no GPU"}, [(TASK_EVENTS, {})])).error == "no GPU"
    assert (await store.get("t1")).mark == waiting
    assert await store.note("nobody", waiting, {}) is None
    assert len(publisher.sent) == 1


async def test_who_lost_the_lease_takes_no_step(publisher):
    now = [0.0]
    leases = MemoryLeases(clock=lambda: now[0])
    store = MemoryTaskStore(publisher, leases=leases)
    await submit(store, "s1", "t1")
    fence = await leases.acquire("bridge", "a", ttl=1)
    now[0] = 1
    later = await leases.acquire("bridge", "b", ttl=1)
    with pytest.raises(FencedError, match="the lease bridge has gone to another holder"):
        await store.transition("t1", STARTED, fence=fence)
    assert await store.transition("t1", STARTED, fence=later)


# --- journal ----------------------------------------------------------------------------------------------------------


async def test_an_entry_stays_until_it_is_acknowledged(store, journal, clock):
    await submit(store, "s1", "a")
    await submit(store, "s2", "b")
    await store.request_cancel("s1", "a")
    first = await journal.read("one", count=1)
    rest = await journal.read("two", count=9)
    assert [(entry.kind, entry.submission_id, entry.task_id) for entry in (*first, *rest)] == [
        ("submit", "s1", None),
        ("submit", "s2", None),
        ("cancel", "s1", "a"),
    ]
    assert await journal.read("one", block_ms=1) == []
    await journal.ack(rest[0])
    assert await journal.depth() == 2
    assert await journal.reclaim("three", min_idle_ms=1000) == []
    clock.now += 1
    assert list(await journal.reclaim("three", min_idle_ms=1000)) == [first[0], rest[1]]
    assert await journal.reclaim("three", min_idle_ms=1000) == []
    for entry in (first[0], rest[1]):
        await journal.ack(entry)
    assert await journal.depth() == 0
