"""The heartbeat of a worker: what it survives, and how it finds out that it was given up."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.cluster import heartbeat
from mloc_prefect.cluster.heartbeat import Heartbeat, lock_name
from mloc_prefect.cluster.membership import MemoryMembership
from mloc_prefect.errors import MissingExtraError
from mloc_prefect.settings import get_settings
from mloc_prefect.worker.worker import MlocGpuWorker
from tests.support.cards import card

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SETTINGS = get_settings(heartbeat_seconds=0.2, heartbeat_ttl=1)
CARD = card("w")


class Site(MemoryMembership):
    """A directory that a test can break, and the clocks that the heartbeat reads."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.errors: list[BaseException] = []
        self.published = threading.Event()
        self.lost: list[str] = []
        self.heart = Heartbeat(SETTINGS, CARD, self.lost.append)

    async def publish(self, card: Any) -> None:
        if self.errors:
            raise self.errors.pop(0)
        await super().publish(card)
        self.published.set()

    async def beat(self) -> None:
        await self.heart._beat(self, self.heart.card)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    found = Site()

    @asynccontextmanager
    async def client() -> AsyncIterator[None]:
        yield

    monkeypatch.setattr(heartbeat, "get_client", client)
    monkeypatch.setattr(heartbeat, "VariableMembership", lambda _client: found)
    return found


# --- the thread -------------------------------------------------------------------------------------------------------


async def test_nothing_that_a_beat_meets_ends_the_thread(site: Site, caplog: pytest.LogCaptureFixture):
    """A proxy's page instead of JSON, for one."""
    site.errors = [ValueError("Expecting value: line 1 column 1"), KeyError("value")]
    site.heart.start()
    assert site.published.wait(10)
    await site.heart.stop()
    assert "heartbeat: the Prefect server: ValueError: Expecting value" in caplog.text
    assert await site.read() == []


async def test_a_registry_that_cannot_be_opened_keeps_nothing_from_the_server(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    tries = []

    async def registration(_stack: Any) -> Any:
        tries.append(1)
        raise MissingExtraError("redis is not installed")

    monkeypatch.setattr(site.heart, "_registration", registration)
    site.heart.start()
    assert site.published.wait(10)
    while len(tries) < 2:
        site.published.clear()
        assert site.published.wait(10)
    await site.heart.stop()
    said = [r for r in caplog.records if "redis is not installed" in r.message and r.levelname == "WARNING"]
    assert len(said) == 1, "said once, however often it is tried"


async def test_a_thread_that_ends_by_itself_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def broken() -> None:
        raise RuntimeError("nobody thought of this")

    ended = threading.Event()
    monkeypatch.setattr(heartbeat, "get_client", broken)
    site.heart = Heartbeat(SETTINGS, CARD, site.lost.append, ended.set)
    site.heart.start()
    assert ended.wait(10)
    assert "the heartbeat broke down" in caplog.text


async def test_a_worker_without_a_heartbeat_drains_and_ends(tmp_path: Path):
    """Other workers start its runs again: it must not continue beside them."""
    worker = MlocGpuWorker(work_pool_name="gpu", settings=get_settings(home=tmp_path, drain_seconds=0))
    worker._main = asyncio.create_task(asyncio.sleep(60))
    worker._services = SimpleNamespace(draining=False)  # type: ignore[assignment]
    worker._stop()
    assert worker._services.draining  # type: ignore[union-attr]
    await asyncio.wait({worker._main}, timeout=10)
    assert worker._main.cancelled()


async def test_a_thread_that_is_stopped_is_not(site: Site):
    ended = threading.Event()
    site.heart = Heartbeat(SETTINGS, CARD, site.lost.append, ended.set)
    site.heart.start()
    await site.heart.stop()
    assert not ended.is_set()


# --- declared lost --------------------------------------------------------------------------------------------------


@pytest.fixture
def paused(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(heartbeat.time, "time", lambda: site.now)
    return site


async def test_the_lock_tells_it_and_once(paused: Site):
    await paused.beat()
    await paused.lock(lock_name(CARD), "other")
    await paused.beat()
    await paused.beat()
    assert paused.lost == ["i1"]


@pytest.mark.parametrize("successor", [False, True])
async def test_without_a_lock_its_card_tells_it_after_a_pause(paused: Site, *, successor: bool):
    """A machine slept until the lock was forgotten; perhaps another process has its name by now."""
    await paused.beat()
    await paused.remove("w")
    if successor:
        await paused.publish(replace(CARD, incarnation="i2"))
    paused.now += 3600
    await paused.beat()
    assert paused.lost == ["i1"]
    found = await paused.card("w")
    assert (found and found.incarnation) == ("i2" if successor else None)
    paused.heart.update(replace(CARD, incarnation="i3"))  # it goes on as a new one
    await paused.beat()
    assert paused.lost == ["i1"]
    assert (await paused.card("w")) == paused.heart.card


async def test_a_card_that_is_still_there_after_a_pause_was_not_taken_over(paused: Site):
    await paused.beat()
    paused.now += 3600
    await paused.beat()
    assert paused.lost == []


async def test_a_card_that_somebody_deletes_is_put_back(paused: Site):
    await paused.beat()
    await paused.remove("w")
    await paused.beat()
    assert paused.lost == []
    assert await paused.card("w") == CARD


async def test_after_a_pause_it_confirms_who_it_is_before_it_acts(paused: Site):
    """A run that it takes as what it was before would be found by nobody."""
    await paused.beat()
    assert await paused.heart.confirmed("i1")
    paused.now += 3600
    asked = asyncio.create_task(paused.heart.confirmed("i1"))
    await asyncio.sleep(0)
    assert not asked.done(), "it does not know yet"
    await paused.beat()
    assert await asked
    paused.now += 3600
    await paused.lock(lock_name(CARD), "other")
    asked = asyncio.create_task(paused.heart.confirmed("i1"))
    await paused.beat()
    assert not await asked
    paused.heart.update(replace(CARD, incarnation="i2"))
    await paused.beat()
    assert not await paused.heart.confirmed("i1")
    assert await paused.heart.confirmed("i2")


async def test_it_is_sure_of_itself_as_long_as_nobody_can_have_missed_it(paused: Site):
    assert not paused.heart.sure_of("i1")
    await paused.beat()
    assert paused.heart.sure_of("i1")
    assert not paused.heart.sure_of("i0")  # what it was before it was given up
    paused.now += CARD.patience(SETTINGS.heartbeat_ttl)
    assert not paused.heart.sure_of("i1")
    paused.heart.update(replace(CARD, heartbeat=10))  # one that beats slowly
    assert paused.heart.sure_of("i1")
