"""Runs that have left a worker without an end that it knows of."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import httpx
import pytest

from mloc_prefect.worker.claims.left_runs import LeftRuns

if TYPE_CHECKING:
    from collections.abc import Collection


class Site:
    """A worker's runs, and what it asked to recover."""

    def __init__(self) -> None:
        self.now = 0.0
        self.down = False
        self.recovered: list[tuple[str, UUID]] = []
        self.left = LeftRuns(self.recover, patience=30.0, clock=lambda: self.now)

    async def recover(self, incarnation: str, runs: Collection[UUID]) -> None:
        if self.down:
            raise httpx.ConnectError("down")
        self.recovered += [(incarnation, run) for run in runs]

    async def wait(self, seconds: float) -> None:
        self.now += seconds
        await self.left.settle()


@pytest.fixture
def site() -> Site:
    return Site()


async def test_what_ended_as_it_should_is_never_asked_for(site: Site) -> None:
    run = uuid4()
    site.left.note_claimed(run, "i1")
    site.left.note_ended(run)
    site.left.note_left(run)
    await site.wait(100)
    assert site.recovered == []


async def test_what_was_left_is_recovered_once_as_what_claimed_it(site: Site) -> None:
    """The worker has another incarnation by now: others declared it lost while it was paused."""
    run = uuid4()
    site.left.note_claimed(run, "i1")
    site.left.note_left(run)
    await site.wait(29)
    assert site.recovered == [], "others may be recovering it"
    await site.wait(1)
    await site.wait(100)
    assert site.recovered == [("i1", run)]


async def test_a_server_that_is_away_is_asked_again(site: Site) -> None:
    run = uuid4()
    site.left.note_unsettled(run, "i1")
    site.down = True
    await site.wait(3600)
    site.down = False
    await site.wait(1)
    assert site.recovered == [("i1", run)]


async def test_what_is_in_its_hands_is_not_recovered(site: Site) -> None:
    run = uuid4()
    site.left.note_claimed(run, "i1")
    site.left.note_unsettled(run, "i1")  # an error beside the run
    await site.wait(100)
    assert site.recovered == []


async def test_what_is_claimed_again_is_in_its_hands(site: Site) -> None:
    run = uuid4()
    site.left.note_unsettled(run, "i1")
    site.left.note_claimed(run, "i2")
    await site.wait(100)
    assert site.recovered == []
    site.left.note_left(run)
    await site.wait(100)
    assert site.recovered == [("i2", run)]
