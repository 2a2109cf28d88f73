"""Runs that stand in line for devices of this machine."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.flow.attempt_files import read_job
from mloc_prefect.flow.dispatcher import StageJob
from mloc_prefect.worker.claims import claim_loop as module

if TYPE_CHECKING:
    from pathlib import Path

    from mloc_prefect.leases import Lease
from tests.support.claim_desk import ONE, SHARED, TWO, Desk, held


async def test_it_stands_in_line_for_the_first_that_has_no_room(desk: Desk):
    first, second = desk.add(ONE), desk.add(TWO)
    assert await desk.poll() == [first]
    await asyncio.sleep(0)
    lease = desk.last[0].lease
    assert lease is not None
    await desk.machine.leases.release(lease)
    async with asyncio.timeout(5):
        while 0.0 not in desk.woken:
            await asyncio.sleep(0.01)
    assert await desk.poll() == [second]
    assert held(desk) == [("gpu:0", "gpu:1")]


async def test_its_place_in_line_goes_with_the_run(desk: Desk):
    desk.add(ONE)
    desk.add(TWO)
    await desk.poll()
    desk.runs.clear()  # another worker took it
    await desk.poll()
    lease = desk.last
    assert lease == []
    assert len(held(desk)) == 1
    small = desk.add(ONE)
    assert await desk.poll() == [small]


async def test_tasks_of_one_engine_run_under_its_device_together(desk: Desk):
    runs = [desk.add(TWO, executor=SHARED) for _ in range(3)]
    assert await desk.poll() == runs
    assert held(desk) == [("gpu:0", "gpu:1")] * 3


async def busy(desk: Desk) -> Lease:
    """Take both cards."""
    lease = await desk.machine.leases.try_acquire(TWO.request, holder="busy")
    assert lease is not None
    return lease


async def turn_comes(desk: Desk, lease: Lease) -> None:
    """Free the cards, and wait until it is the turn of who stands in line for them."""
    desk.woken.clear()
    await desk.machine.leases.release(lease)
    async with asyncio.timeout(5):
        while 0.0 not in desk.woken:
            await asyncio.sleep(0.01)


async def test_a_place_in_line_of_another_engine_is_given_up(desk: Desk):
    """Its lease is shared with tasks of that engine: with this one's they would be two on one card."""
    taken = await busy(desk)
    desk.add(TWO, executor=SHARED, engine="x")
    assert await desk.poll() == []
    desk.runs.clear()  # cancelled
    other = desk.add(TWO, executor=SHARED, engine="y")
    await turn_comes(desk, taken)
    assert await desk.poll() == [other]
    same = desk.add(TWO, executor=SHARED, engine="y")
    desk.add(TWO, executor=SHARED, engine="x")
    assert await desk.poll() == [same]


async def test_a_place_in_line_goes_to_the_next_of_its_engine(desk: Desk):
    taken = await busy(desk)
    desk.add(TWO, executor=SHARED)
    assert await desk.poll() == []
    desk.runs.clear()  # another worker took it
    following = desk.add(TWO, executor=SHARED)
    late = asyncio.create_task(desk.machine.leases.acquire(TWO.request, holder="late"))
    await turn_comes(desk, taken)
    assert await desk.poll() == [following]
    late.cancel()


async def test_the_turn_of_the_first_is_left_to_it_by_those_behind(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """It comes while the job of the second is read."""
    taken = await busy(desk)
    first, second = (desk.add(TWO, executor=SHARED, engine=name) for name in "xy")
    assert await desk.poll() == []
    loop = asyncio.get_running_loop()

    def read(directory: Path) -> StageJob:
        if directory.name == str(second):
            asyncio.run_coroutine_threadsafe(turn_comes(desk, taken), loop).result()
        return read_job(directory)

    monkeypatch.setattr(module, "read_job", read)
    assert await desk.poll() == []
    monkeypatch.undo()
    assert await desk.poll() == [first]
    assert held(desk) == [("gpu:0", "gpu:1")]


async def test_one_that_comes_before_the_first_takes_its_place(desk: Desk):
    """Else it would have no room, as the lease of the other one holds it, and that one would never be asked."""
    taken = await busy(desk)
    later = desk.add(TWO, executor=SHARED, engine="x")
    assert await desk.poll() == []
    sooner = desk.add(TWO, engine="y")
    desk.runs.reverse()
    await turn_comes(desk, taken)
    assert await desk.poll() == [sooner]
    lease = desk.last[0].lease
    assert lease is not None
    assert await desk.poll() == []
    await turn_comes(desk, lease)
    assert await desk.poll() == [later]
