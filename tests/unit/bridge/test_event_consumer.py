"""Following events: what is acknowledged when, and what is confirmed first."""

from __future__ import annotations

import httpx
import pytest

from mloc_prefect.bridge import event_consumer
from mloc_prefect.bridge.event_consumer import EventConsumer
from mloc_prefect.bridge.leader import LEASE
from mloc_prefect.bridge.memory_runs import MemorySource
from mloc_prefect.errors import FencedError, StoreError
from mloc_prefect.process.backoff import Backoff
from tests.support.bridging import (
    HAPPY,
    BridgeBench,
    running,
    stage_event,
    started,
    state,
    until,
    view,
)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_consumer, "WAITS", Backoff(first=0.0))


async def test_events_are_acknowledged_after_their_step():
    bench, source = BridgeBench(view(since=20)), MemorySource()
    await bench.submitted()
    source.put(*started(), state("Completed", at=20))
    async with running(EventConsumer(source, bench.projector, bench.runs).consume_events()):
        await until(lambda: not source.pending)
    assert bench.messages == HAPPY


async def test_the_end_is_believed_when_the_api_shows_it():
    bench, source = BridgeBench(view("RUNNING", since=11)), MemorySource()
    await bench.submitted("t1", "t2")
    source.put(*started(), state("Completed", at=20), *started("run-t2", "t2"))
    async with running(EventConsumer(source, bench.projector, bench.runs).consume_events()):
        await until(lambda: bench.messages.count("TASK_STARTED") == 2)
        assert [event.state for event in source.pending] == ["Completed"], "it is not acknowledged, and holds up nobody"
        assert (await bench.record()).status == "DISPATCHED"
        bench.runs.put(view(since=20))
        await until(lambda: not source.pending)
    assert (await bench.record()).status == "DONE"


@pytest.mark.parametrize("shown", [view("RUNNING", since=30), None])
async def test_an_end_that_is_over_or_was_rolled_back_changes_nothing(shown):
    bench, source = BridgeBench(*([shown] if shown else [])), MemorySource()
    await bench.submitted()
    source.put(*started(), state("Failed", at=20))
    consumer = EventConsumer(source, bench.projector, bench.runs, commit_seconds=0.02)
    async with running(consumer.consume_events()):
        await until(lambda: not source.pending)
    assert (await bench.record()).status == "DISPATCHED"


async def test_while_store_or_api_are_away_nothing_is_lost():
    bench, source = BridgeBench(view(since=20)), MemorySource()
    await bench.submitted()
    away = {"store": 2, "api": 2}
    transition, get = bench.stores.tasks.transition, bench.runs.get

    async def no_transition(*args, **kwargs):
        away["store"] -= 1
        if away["store"] >= 0:
            raise StoreError("Redis at nowhere:1 does not serve")
        return await transition(*args, **kwargs)

    async def no_get(ids):
        away["api"] -= 1
        if away["api"] >= 0:
            raise httpx.ConnectError("refused")
        return await get(ids)

    bench.stores.tasks.transition, bench.runs.get = no_transition, no_get
    source.put(*started(), state("Completed", at=20))
    async with running(EventConsumer(source, bench.projector, bench.runs).consume_events()):
        await until(lambda: not source.pending)
    assert bench.messages == HAPPY


async def test_an_event_that_breaks_us_does_not_stop_the_others(caplog):
    bench, source = BridgeBench(), MemorySource()
    await bench.submitted()
    source.put(stage_event("placed", attempt="not a number"), *started())
    async with running(EventConsumer(source, bench.projector, bench.runs).consume_events()):
        await until(lambda: not source.pending)
    assert (await bench.record()).status == "DISPATCHED"
    assert "could not be handled" in caplog.text


async def test_a_bridge_that_was_replaced_stops():
    bench, source = BridgeBench(), MemorySource()
    await bench.submitted()
    old = await bench.stores.leases.acquire(LEASE, "old", ttl=0)
    await bench.stores.leases.acquire(LEASE, "new", ttl=60)
    bench.projector._fence = lambda: old
    source.put(*started())
    with pytest.raises(FencedError):
        await EventConsumer(source, bench.projector, bench.runs).consume_events()
    assert bench.messages == []
    assert len(source.pending) == 2
