"""Who takes over for a worker that is gone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import pytest

from mloc_prefect.cluster.cluster_view import ClusterView
from mloc_prefect.cluster.heartbeat import lock_name
from mloc_prefect.cluster.membership import MemoryMembership
from mloc_prefect.cluster.reaper import Reaper
from mloc_prefect.cluster.worker_card import WorkerCard
from mloc_prefect.errors import DispatchError
from tests.support.cards import card
from tests.support.recovery_server import DEAD
from tests.unit.cluster.test_worker_card import Clock

# --- exactly one ------------------------------------------------------------------------------------------------------


class Site:
    """Reapers that look at one directory; a worker `w` that has not been heard of for long."""

    def __init__(self) -> None:
        self.directory, self.clock = MemoryMembership(), Clock()
        self.recovered: list[tuple[str, str]] = []
        self.broken: set[str] = set()
        self.steps: list[Any] = []

    async def reaper(self, name: str) -> Reaper:
        view = ClusterView(self.directory, 10.0, clock=self.clock)

        async def recover(found: WorkerCard) -> None:
            self.recovered.append((name, found.id))
            if name in self.broken:
                raise KeyError("killed half-way")

        await view.refresh()
        return Reaper(view, recover, name, patience=20.0, clock=self.clock, sleep=self.sleep)

    async def sleep(self, _: float) -> None:
        """Let a few seconds pass, and one step that others take meanwhile."""
        self.clock.now += 4
        if self.steps:
            await self.steps.pop(0)()

    async def wait(self, *reapers: Reaper, seconds: float = 12.0) -> None:
        """Let time pass in which everybody goes on looking."""
        for _ in range(int(seconds / 4)):
            self.clock.now += 4
            for reaper in reapers:
                await reaper.check()


@pytest.fixture
async def site() -> Site:
    found = Site()
    await found.directory.publish(DEAD)
    return found


async def test_exactly_one_takes_over(site: Site):
    reapers = [await site.reaper(name) for name in ("one", "two", "three")]
    await site.wait(*reapers, seconds=40)
    assert site.recovered == [("one", "w")]
    assert await site.directory.read() == []


async def test_another_goes_on_when_the_first_is_lost_itself(site: Site):
    one, two = await site.reaper("one"), await site.reaper("two")
    site.broken.add("one")
    with pytest.raises(KeyError):
        await site.wait(one, two)
    await site.wait(two, seconds=16)
    assert site.recovered == [("one", "w")]  # perhaps it is only slow
    await site.wait(two, seconds=24)
    assert site.recovered == [("one", "w"), ("two", "w")]
    assert await site.directory.read() == []


async def test_one_whose_server_was_away_goes_on_itself(site: Site):
    one = await site.reaper("one")
    site.broken.add("one")
    with pytest.raises(KeyError):
        await site.wait(one)
    site.broken.clear()
    await one.check()
    assert site.recovered == [("one", "w")] * 2
    assert await site.directory.read() == []


async def test_locks_are_forgotten_after_a_day(site: Site):
    one = await site.reaper("one")
    await site.wait(one)
    assert await site.directory.locked(lock_name(DEAD))
    site.clock.now += 3600
    await one.check()
    assert await site.directory.locked(lock_name(DEAD))
    site.clock.now += 86_400
    await one.check()
    assert not await site.directory.locked(lock_name(DEAD))


# --- a worker that comes back under its name -------------------------------------------------------------------------


async def come_back(site: Site) -> None:
    await (await site.reaper("w")).take_over_predecessor("w")


async def test_a_worker_that_comes_back_takes_over_from_itself(site: Site):
    await come_back(site)
    assert site.recovered == [("w", "w")]
    assert await site.directory.read() == []


async def test_it_leaves_that_to_another_who_was_first_and_waits_for_it(site: Site):
    other = await site.reaper("other")
    assert await site.directory.lock(lock_name(DEAD), "other")

    async def goes_on() -> None:
        other._locks[lock_name(DEAD)] = site.clock.now
        await other.take_over(DEAD)

    site.steps += [_nothing, goes_on]  # while it looks whether the earlier process lives, and after that
    await come_back(site)
    assert site.recovered == [("other", "w")]


async def test_it_goes_on_for_another_who_was_lost_meanwhile(site: Site):
    assert await site.directory.lock(lock_name(DEAD), "other")
    await come_back(site)
    assert site.recovered == [("w", "w")]


async def test_it_waits_for_a_server_that_is_away(site: Site, monkeypatch: pytest.MonkeyPatch):
    read = site.directory.read

    async def away() -> Any:
        raise httpx.ConnectError("down")

    async def back() -> None:
        monkeypatch.setattr(site.directory, "read", read)

    reaper = await site.reaper("w")
    monkeypatch.setattr(site.directory, "read", away)
    site.steps += [_nothing, back]
    await reaper.take_over_predecessor("w")
    assert site.recovered == [("w", "w")]


async def test_two_of_one_name_are_refused(site: Site):
    async def beats() -> None:
        await site.directory.publish(card("w", beat=7))

    site.steps.append(beats)
    with pytest.raises(DispatchError, match="runs already"):
        await come_back(site)
    assert site.recovered == []


async def test_of_two_that_start_at_once_one_is_refused(site: Site):
    """Neither has found a card of the other."""
    await site.directory.remove("w")
    first, second = card("w", incarnation="a"), card("w", incarnation="b")
    read, found_none = site.directory.read, [[], []]

    async def then_both_look() -> Any:
        return found_none.pop() if found_none else await read()

    site.directory.read = then_both_look  # type: ignore[method-assign]

    async def beats() -> None:
        await site.directory.publish(replace(first, beat=7))

    site.steps.append(beats)
    await (await site.reaper("w")).claim_name(first)
    with pytest.raises(DispatchError, match="runs already"):
        await (await site.reaper("w")).claim_name(second)
    assert site.recovered == []
    assert [c.incarnation for c in await read()] == ["a"]


async def test_a_card_whose_answer_was_lost_is_our_own(site: Site):
    ours = card("w", incarnation="a")
    await site.directory.remove("w")
    create = site.directory.create

    async def lost(found: WorkerCard) -> bool:
        await create(found)
        return False

    site.directory.create = lost  # type: ignore[method-assign]
    await (await site.reaper("w")).claim_name(ours)
    assert [c.incarnation for c in await site.directory.read()] == ["a"]


async def _nothing() -> None: ...
