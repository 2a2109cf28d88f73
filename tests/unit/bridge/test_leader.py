"""Only one bridge is active."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mloc_prefect.bridge import leader
from mloc_prefect.bridge.leader import LEASE, LeaderLease
from mloc_prefect.errors import FencedError, StoreError
from mloc_prefect.store.memory.service_leases import MemoryLeases
from tests.support.bridging import (
    running,
    until,
)


@pytest.fixture
def leases() -> tuple[MemoryLeases, list[float]]:
    now = [0.0]
    return MemoryLeases(clock=lambda: now[0]), now


def candidate(leases: tuple[MemoryLeases, list[float]], terms: list[tuple[int, bool]], ttl: float = 0.02) -> Any:
    async def work(term: leader.LeaderTerm) -> None:
        terms.append((term.fence.number, term.fresh))
        await asyncio.Event().wait()

    return LeaderLease(leases[0], ttl=ttl, clock=lambda: leases[1][0]).hold_and_work(work)


async def test_one_works_and_the_next_takes_over(leases):
    first: list[tuple[int, bool]] = []
    second: list[tuple[int, bool]] = []
    async with running(candidate(leases, first)) as task:
        await until(lambda: first)
        async with running(candidate(leases, second)):
            await asyncio.sleep(0.05)
            assert second == []
            task.cancel()
            await until(lambda: second)
    assert first == [(2, True)], "a store without any bridge before"
    assert second == [(3, False)]


async def test_a_holder_that_lost_the_lease_stops_its_work_and_stands_by(leases):
    terms: list[tuple[int, bool]] = []
    async with running(candidate(leases, terms)):
        await until(lambda: terms)
        leases[1][0] = 100.0
        await leases[0].acquire(LEASE, "other", ttl=10)
        await asyncio.sleep(0.05)
        assert len(terms) == 1
        leases[1][0] = 200.0
        await until(lambda: len(terms) == 2)
    assert terms[1][1] is False


async def test_an_emptied_store_starts_the_work_afresh(leases):
    terms: list[tuple[int, bool]] = []
    async with running(candidate(leases, terms)):
        await until(lambda: terms)
        leases[0]._held.clear()
        leases[0]._numbers.clear()
        await until(lambda: len(terms) == 2)
    assert terms[1][1] is True


async def test_an_outage_of_the_store_is_logged_once(caplog):
    class Away:
        asked = 0

        async def acquire(self, name: str, holder: str, *, ttl: float) -> None:
            self.asked += 1
            raise StoreError("Redis is away")

        async def release(self, name: str, holder: str) -> bool:
            raise StoreError("Redis is away")

    away = Away()
    async with running(LeaderLease(away, ttl=0.01).hold_and_work(asyncio.sleep)):
        await until(lambda: away.asked > 3)
    assert caplog.text.count("could not acquire the bridge lease, will retry: Redis is away") == 1


async def test_an_error_of_the_work_ends_the_bridge_but_fencing_does_not(leases):
    errors = [FencedError("replaced"), KeyError("defect")]

    async def work(term: leader.LeaderTerm) -> None:
        raise errors.pop(0)

    with pytest.raises(KeyError):
        await LeaderLease(leases[0], ttl=0.02).hold_and_work(work)
    assert errors == []
