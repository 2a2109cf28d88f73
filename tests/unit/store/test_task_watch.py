"""Waiting for the ends of tasks, and the watch that all runs of an event loop share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from mloc_prefect.errors import PlanError, StoreError
from mloc_prefect.settings import get_settings
from mloc_prefect.store import task_watch
from mloc_prefect.store.backends import memory_stores
from mloc_prefect.store.states import Phase, StatusMark
from mloc_prefect.store.task_watch import StoreWatch, open_task_watch
from tests.support.bridging import BridgeBench

if TYPE_CHECKING:
    from mloc_prefect.store.backends import Stores


@dataclass
class SlowBacking:
    """Connections that take until `may_close` to close."""

    may_close: asyncio.Event = field(default_factory=asyncio.Event)
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False

    async def check(self) -> None:
        """Always alive."""

    async def close(self) -> None:
        self.closing.set()
        await self.may_close.wait()
        self.closed = True


async def test_the_watch_sees_the_ends_of_tasks():
    bench = BridgeBench()
    await bench.submitted("t1", "t2", "t3")
    async with StoreWatch(bench.stores.tasks, every=0.001) as watch:
        done = asyncio.ensure_future(watch.completed("t1"))
        stopped = asyncio.ensure_future(watch.cancelled("t2"))
        ended = asyncio.ensure_future(watch.ended("t3"))
        await asyncio.sleep(0.02)
        assert not (done.done() or stopped.done() or ended.done())
        await bench.stores.tasks.transition("t1", StatusMark(1, Phase.DONE))
        await bench.stores.tasks.transition("t2", StatusMark(1, Phase.CANCELLED))
        await bench.stores.tasks.transition("t3", StatusMark(1, Phase.FAILED))
        async with asyncio.timeout(5):
            await done
            await stopped
            assert await ended == "FAILED"
        with pytest.raises(PlanError, match="not known here"):
            await watch.ended("unknown")
        assert watch._waiting == {}


async def test_a_cancellation_is_read_at_once_and_an_outage_says_nothing(caplog: pytest.LogCaptureFixture):
    bench = BridgeBench()
    await bench.submitted("t1")
    watch = StoreWatch(bench.stores.tasks, every=1000.0)
    assert not await watch.is_cancelled("t1")
    assert not await watch.is_cancelled("unknown")
    await bench.stores.tasks.transition("t1", StatusMark(1, Phase.CANCELLED))
    assert await watch.is_cancelled("t1")

    async def away(*_: Any, **__: Any) -> Any:
        raise StoreError("Redis at nowhere:1 does not serve")

    bench.stores.tasks.get_many = away  # type: ignore[method-assign]
    assert not await watch.is_cancelled("t1")
    assert "could not read whether task t1 is cancelled" in caplog.text


async def test_the_watch_survives_an_outage_of_the_store():
    bench = BridgeBench()
    await bench.submitted()
    await bench.stores.tasks.transition("t1", StatusMark(1, Phase.DONE))
    get_many, away = bench.stores.tasks.get_many, [True, True]

    async def flaky(*args: Any, **kwargs: Any) -> Any:
        if away:
            away.pop()
            raise StoreError("Redis at nowhere:1 does not serve")
        return await get_many(*args, **kwargs)

    bench.stores.tasks.get_many = flaky  # type: ignore[method-assign]
    async with StoreWatch(bench.stores.tasks, every=0.001, retry=0.0) as watch, asyncio.timeout(5):
        await watch.completed("t1")


# --- one watch for all runs -------------------------------------------------------------------------------------------

SETTINGS = get_settings(redis_url=SecretStr("redis://localhost:1/0"))


async def test_without_a_store_there_is_no_watch():
    async with open_task_watch(get_settings(redis_url=None)) as watch:
        assert watch is None


async def test_runs_of_one_event_loop_share_a_watch():
    opened: list[SlowBacking] = []

    def connect(_url: SecretStr) -> Stores:
        opened.append(SlowBacking())
        opened[-1].may_close.set()
        return replace(memory_stores(), backing=opened[-1])

    async with open_task_watch(SETTINGS, connect) as first, open_task_watch(SETTINGS, connect) as second:
        assert first is second
    assert [backing.closed for backing in opened] == [True]
    assert task_watch._shared == {}


async def test_a_run_that_begins_while_the_last_one_closes_gets_a_store_of_its_own():
    opened: list[SlowBacking] = []

    def connect(_url: SecretStr) -> Stores:
        opened.append(SlowBacking())
        return replace(memory_stores(), backing=opened[-1])

    async def run_once() -> StoreWatch | None:
        async with open_task_watch(SETTINGS, connect) as watch:
            return watch

    async with asyncio.timeout(30):
        ending = asyncio.create_task(run_once())
        while not opened:
            await asyncio.sleep(0)
        old = opened[0]
        await old.closing.wait()
        async with open_task_watch(SETTINGS, connect) as watch:
            old.may_close.set()
            assert await ending is not watch
            assert old.closed
            new = opened[1]
            assert not new.closed
            assert watch is not None
            with pytest.raises(PlanError, match="not known here"):
                await watch.ended("unknown")  # it still reads
            new.may_close.set()
    assert new.closed
    assert task_watch._shared == {}
