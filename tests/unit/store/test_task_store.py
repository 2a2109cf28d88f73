"""The stores in memory: the contract that the real ones keep too, and what depends on a clock."""

from __future__ import annotations

import pytest

from mloc_prefect.store.backends import Stores, memory_stores
from mloc_prefect.store.memory.journal import MemoryJournal
from mloc_prefect.store.memory.publisher import MemoryPublisher
from mloc_prefect.store.memory.task_store import MemoryTaskStore
from tests.support.records import submit
from tests.support.store_contract import StoreContract, ids


class TestInMemory(StoreContract):
    @pytest.fixture
    def stores(self) -> Stores:
        return memory_stores()


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


async def test_a_key_is_remembered_for_a_day():
    clock = Clock()
    store = MemoryTaskStore(MemoryPublisher(), clock=clock)
    await submit(store, "s1", "a", idempotency_key="k", digest="d")
    clock.now += 24 * 3600 - 1
    assert (await submit(store, "s2", "b", idempotency_key="k", digest="d")).submission_id == "s1"
    clock.now += 1
    assert (await submit(store, "s2", "b", idempotency_key="k", digest="other")).submission_id == "s2"


async def test_entries_are_taken_over_after_their_time():
    clock = Clock()
    journal = MemoryJournal(clock)
    store = MemoryTaskStore(MemoryPublisher(), journal, clock=clock)
    await submit(store, "s1", "a")
    taken = await journal.read("one")
    clock.now += 0.9
    assert await journal.reclaim("two", min_idle_ms=1000) == []
    clock.now += 0.1
    assert list(await journal.reclaim("two", min_idle_ms=1000)) == taken
    assert await journal.reclaim("three", min_idle_ms=1000) == []


async def test_order_holds_when_the_clock_goes_back():
    clock = Clock()
    store = MemoryTaskStore(MemoryPublisher(), clock=clock)
    await submit(store, "s1", "b", "a")
    clock.now -= 3600
    await submit(store, "s2", "0")
    assert ids(await store.list()) == ["b", "a", "0"]
