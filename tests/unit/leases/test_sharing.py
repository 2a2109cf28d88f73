"""Sharing of cards by memory, the order of service, and where an engine goes: over both books."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mloc_prefect.hardware.inventory import GpuDevice, Inventory
from mloc_prefect.leases import FileLeaseBook, Lease, LeaseBook, MemoryLeaseBook, state
from mloc_prefect.leases import book as lease_book
from mloc_prefect.plan.resources import ResourceRequest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GIB = 1 << 30
ONE = Inventory(8, None, (GpuDevice(0, "a100", 80 * GIB),))
THREE = Inventory(
    8, None, (GpuDevice(0, "a100", 80 * GIB), GpuDevice(1, "a100", 80 * GIB), GpuDevice(2, "l4", 24 * GIB))
)
WHOLE = ResourceRequest(gpu_count=1)
TWO_WHOLE = ResourceRequest(gpu_count=2)


def part(gib: int, count: int = 1, **more: object) -> ResourceRequest:
    return replace(ResourceRequest(gpu_count=count, gpu_memory_bytes=gib * GIB), **more)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_book, "_POLL", 0.001)


@pytest.fixture(params=["memory", "file"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., LeaseBook]:
    if request.param == "memory":
        return lambda hardware=ONE, slots=1, **more: MemoryLeaseBook(hardware, slots, **more)
    return lambda hardware=ONE, slots=1, **more: FileLeaseBook(tmp_path, hardware, slots, **more)


async def got(book: LeaseBook, request: ResourceRequest, **more: str) -> Lease:
    lease = await book.try_acquire(request, holder="x", **more)
    assert lease is not None
    return lease


async def refused(book: LeaseBook, request: ResourceRequest) -> bool:
    return await book.try_acquire(request, holder="x") is None


def ask(book: LeaseBook, request: ResourceRequest, **more: object) -> asyncio.Task[Lease]:
    return asyncio.create_task(book.acquire(request, holder="x", **more))  # type: ignore[arg-type]


async def queued(book: LeaseBook, request: ResourceRequest, **more: object) -> asyncio.Task[Lease]:
    task = ask(book, request, **more)
    await asyncio.sleep(0.02)
    assert not task.done()
    return task


async def test_parts_of_a_card_are_packed_until_its_memory_is_used(make: Callable[..., LeaseBook]) -> None:
    book = make()
    first, second = await got(book, part(40)), await got(book, part(30))
    assert (first.devices, first.memory_bytes, first.share) == (("gpu:0",), 40 * GIB, 0.5)
    assert second.share == 0.375
    assert await refused(book, part(11))
    assert (await got(book, part(10))).share == 0.125
    await book.release(first)
    assert (await got(book, part(40))).devices == ("gpu:0",)


async def test_a_whole_card_is_not_shared_with_parts_of_it(make: Callable[..., LeaseBook]) -> None:
    book = make()
    packed = await got(book, part(10))
    assert await refused(book, WHOLE)
    assert await refused(book, part(10, gpu_exclusive=True))
    await book.release(packed)
    for request in (WHOLE, part(10, gpu_exclusive=True), part(80)):
        whole = await got(book, request)
        assert (whole.memory_bytes, whole.share) == (0, 1.0)
        assert await refused(book, part(1))
        await book.release(whole)


async def test_several_cards_may_be_shared_at_once(make: Callable[..., LeaseBook]) -> None:
    book = make(THREE)
    assert (await got(book, part(40, 2))).devices == ("gpu:0", "gpu:1")
    assert (await got(book, part(20, 3))).devices == ("gpu:0", "gpu:1", "gpu:2")
    assert await refused(book, part(30, 2))


async def test_a_card_of_unknown_memory_is_not_shared(make: Callable[..., LeaseBook]) -> None:
    book = make(Inventory(1, None, (GpuDevice(0, "l4"),)))
    assert (await got(book, part(10))).share == 1.0
    assert await refused(book, part(10))


async def test_engines_per_device_does_not_bound_parts(make: Callable[..., LeaseBook]) -> None:
    book = make(ONE, 2)
    held = [await got(book, part(20)) for _ in range(4)]
    assert await refused(book, part(1))
    for lease in held:
        await book.release(lease)
    await got(book, WHOLE)
    await got(book, WHOLE)
    assert await refused(book, WHOLE)


async def test_tasks_of_one_engine_take_its_part_once(make: Callable[..., LeaseBook]) -> None:
    book = make()
    held = [await got(book, part(50), share="engine") for _ in range(3)]
    assert {lease.devices for lease in held} == {("gpu:0",)}
    assert (await got(book, part(30))).devices == ("gpu:0",)
    assert await refused(book, part(1))


async def test_the_tightest_card_is_taken_for_a_stated_memory(make: Callable[..., LeaseBook]) -> None:
    book = make(THREE)
    assert (await got(book, part(20))).devices == ("gpu:2",)
    assert (await got(book, part(30))).devices == ("gpu:0",)
    assert (await got(book, part(40))).devices == ("gpu:0",)
    assert (await got(book, part(20))).devices == ("gpu:1",)


async def test_an_engine_goes_where_it_was_and_away_from_others(make: Callable[..., LeaseBook]) -> None:
    book = make(Inventory(8, None, tuple(GpuDevice(i, "l4", 24 * GIB) for i in range(3))))
    for engine, place in (("a", 0), ("b", 1), ("a", 0), ("c", 2), ("b", 1), ("d", 0)):
        lease = await got(book, WHOLE, engine=engine)
        assert lease.devices == (f"gpu:{place}",), engine
        await book.release(lease)


async def test_memory_that_others_hold_is_not_leased(make: Callable[..., LeaseBook]) -> None:
    used = Inventory(8, None, (GpuDevice(0, "a100", 80 * GIB, taken_bytes=30 * GIB),))
    book = make(used)
    assert await refused(book, part(60))  # it fits the card, and will when the others have gone
    whole = await got(book, WHOLE)
    assert whole.share == 0.6
    await book.release(whole)
    assert (await got(book, part(50))).share == 0.625
    assert await refused(book, part(1))


async def test_a_card_that_others_use_most_of_is_left_to_them_until_they_go(
    make: Callable[..., LeaseBook], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_book, "_LOOK_SECONDS", 0.01)
    now, told = [Inventory(8, None, (GpuDevice(0, "a100", 80 * GIB, taken_bytes=41 * GIB),))], list[str]()
    book = make(now[0], look=lambda: now[0])
    task = await queued(book, WHOLE, on_wait=told.append)
    assert told == ["waiting for 1 gpu: processes of others hold the memory of all that would do"]
    now[0] = ONE
    assert (await asyncio.wait_for(task, 60)).devices == ("gpu:0",)


async def test_larger_priorities_are_served_first(make: Callable[..., LeaseBook]) -> None:
    book = make()
    held = await got(book, WHOLE)
    low, high, late = [await queued(book, WHOLE, priority=p) for p in (-1, 5, 5)]
    for task in (high, late, low):
        await book.release(held)
        held = await asyncio.wait_for(task, 60)


async def test_small_ones_pass_a_large_one_until_its_patience_ends(make: Callable[..., LeaseBook]) -> None:
    book = make(THREE, patience=60.0)
    first = await got(book, ResourceRequest(gpu_count=1, gpu_type="a100"))
    large = await queued(book, part(80, 2))
    passing = await got(book, part(40))  # fits nowhere but on the a100 that the large one could use
    await book.release(passing)
    book.rules = replace(book.rules, patience=0.0)
    assert await refused(book, part(40))
    assert (await got(book, part(20))).devices == ("gpu:2",)  # what it cannot use is not kept
    await book.release(first)
    assert (await asyncio.wait_for(large, 60)).devices == ("gpu:0", "gpu:1")


async def test_what_a_waiter_keeps_is_passed_by_larger_priorities_only(make: Callable[..., LeaseBook]) -> None:
    book = make(THREE, patience=0.0)
    await got(book, ResourceRequest(gpu_count=1, gpu_type="a100"))
    await queued(book, part(80, 2), priority=-1)
    assert await book.try_acquire(part(40), holder="x", priority=-5) is None
    assert await book.try_acquire(part(40), holder="x", priority=0) is not None


async def test_time_that_was_waited_elsewhere_counts(make: Callable[..., LeaseBook]) -> None:
    book = make(THREE, patience=60)
    first = await got(book, ResourceRequest(gpu_count=1, gpu_type="a100"))
    large = await queued(book, part(80, 2), waited=61.0)
    assert await refused(book, part(40))
    await book.release(first)
    await large


async def test_a_large_one_starts_although_small_ones_never_stop_coming(make: Callable[..., LeaseBook]) -> None:
    book = make(ONE, patience=0.05)
    done = asyncio.Event()

    async def small() -> None:
        while not done.is_set():
            lease = await book.acquire(part(40), holder="small")
            await asyncio.sleep(0.004)
            await book.release(lease)

    stream = [asyncio.create_task(small()) for _ in range(4)]
    await asyncio.sleep(0.02)
    await book.release(await asyncio.wait_for(ask(book, WHOLE), 60))
    done.set()
    await asyncio.gather(*stream)


async def test_a_waiter_that_is_stopped_blocks_nobody(
    make: Callable[..., LeaseBook], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_book, "_POLL", 0.5)
    book = make(THREE, patience=0)
    first = await got(book, ResourceRequest(gpu_count=1, gpu_type="a100"))
    large = await queued(book, part(80, 2))
    assert await refused(book, part(40))
    monkeypatch.setattr(state, "_STOPPED", 0.0)  # as if its process had been stopped for longer
    other = await got(book, part(40))
    await book.release(first)
    await book.release(other)
    monkeypatch.setattr(lease_book, "_BEAT", 0.0)
    await asyncio.wait_for(large, 60)


async def test_a_waiter_goes_on_when_the_book_was_lost(tmp_path: Path) -> None:
    book = FileLeaseBook(tmp_path, ONE)
    await got(book, WHOLE)
    waiting = await queued(book, WHOLE)
    next((tmp_path / "run").glob("leases-*.json")).unlink()
    assert (await asyncio.wait_for(waiting, 60)).devices == ("gpu:0",)


async def test_room_counts_what_could_start_now(make: Callable[..., LeaseBook]) -> None:
    book = make(THREE)
    assert await book.room(WHOLE) == 3
    assert await book.room(TWO_WHOLE) == 1
    assert await book.room(part(20)) == 9
    assert await book.room(part(20), most=2) == 2
    assert await book.room(ResourceRequest()) == 1
    assert await book.room(ResourceRequest(gpu_count=4)) == 0
    lease = await got(book, ResourceRequest(gpu_count=1, gpu_type="l4"))
    assert await book.room(WHOLE) == 2
    waiting = await queued(book, ResourceRequest(gpu_count=1, gpu_type="l4"))
    assert await book.room(part(10)) == 16
    await book.release(lease)
    await waiting
    assert len(book.snapshot()) == 1


REQUESTS = st.builds(
    part,
    st.integers(1, 80),
    st.integers(1, 2),
    gpu_exclusive=st.booleans(),
)
STEPS = st.lists(st.tuples(st.booleans(), st.one_of(REQUESTS, st.just(WHOLE), st.just(TWO_WHOLE))), max_size=40)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.integers(1, 2))
def test_no_card_is_ever_given_out_beyond_its_memory(steps: list[tuple[bool, ResourceRequest]], slots: int) -> None:
    asyncio.run(_check_bounds(steps, slots))


async def _check_bounds(steps: list[tuple[bool, ResourceRequest]], slots: int) -> None:
    book = MemoryLeaseBook(Inventory(8, None, (GpuDevice(0, "a", 80 * GIB), GpuDevice(1, "a", 80 * GIB))), slots)
    for release, request in steps:
        if release and book.snapshot():
            await book.release(book.snapshot()[0].lease)
        else:
            await book.try_acquire(request, holder="x")
        for device in ("gpu:0", "gpu:1"):
            there = [h.lease for h in book.snapshot() if device in h.lease.devices]
            parts = [lease.memory_bytes for lease in there if lease.memory_bytes]
            assert sum(parts) <= 80 * GIB
            assert not (parts and len(parts) < len(there))
            assert len(there) - len(parts) <= slots
            assert all(len(set(lease.devices)) == len(lease.devices) for lease in there)
