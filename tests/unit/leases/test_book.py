"""The contract of lease books, run over both."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.errors import DispatchError
from mloc_prefect.hardware.inventory import GpuDevice, Inventory
from mloc_prefect.leases import FileLeaseBook, Lease, LeaseBook, MemoryLeaseBook
from mloc_prefect.leases import book as lease_book
from mloc_prefect.plan.resources import ResourceRequest
from mloc_prefect.process.proc import boot_mark

if TYPE_CHECKING:
    from collections.abc import Callable

GIB = 1 << 30
HARDWARE = Inventory(
    8, None, (GpuDevice(0, "a100", 80 * GIB), GpuDevice(1, "a100", 80 * GIB), GpuDevice(2, "l4", 24 * GIB))
)
CPU, ANY, A100 = ResourceRequest(), ResourceRequest(gpu_count=1), ResourceRequest(gpu_count=1, gpu_type="a100")
BOTH_A100 = ResourceRequest(gpu_count=2, gpu_type="a100")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_book, "_POLL", 0.001)


@pytest.fixture(params=["memory", "file"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., LeaseBook]:
    if request.param == "memory":
        return lambda slots=1, **more: MemoryLeaseBook(more.pop("hardware", HARDWARE), slots, **more)
    return lambda slots=1, **more: FileLeaseBook(tmp_path, more.pop("hardware", HARDWARE), slots, **more)


def book_file(home: Path) -> Path:
    (home / "run").mkdir(exist_ok=True)
    return home / "run" / f"leases-{boot_mark()}.json"


async def waits(task: asyncio.Task[Lease]) -> bool:
    await asyncio.sleep(0.02)
    return not task.done()


def ask(book: LeaseBook, request: ResourceRequest, holder: str) -> asyncio.Task[Lease]:
    return asyncio.create_task(book.acquire(request, holder=holder))


async def test_one_engine_at_a_time_on_the_cpu_by_default(make: Callable[..., LeaseBook]) -> None:
    book = make()
    first = await book.acquire(CPU, holder="a")
    assert first.devices == ("cpu",)
    second = ask(book, CPU, "b")
    assert await waits(second)
    await book.release(first)
    await book.release(first)
    assert (await second).holder == "b"
    assert [h.lease.holder for h in book.snapshot()] == ["b"]
    assert book.snapshot()[0].pid == os.getpid()


async def test_more_engines_per_device_are_a_setting(make: Callable[..., LeaseBook]) -> None:
    book = make(2)
    held = [await book.acquire(CPU, holder=h) for h in "ab"]
    third = ask(book, CPU, "c")
    assert await waits(third)
    await book.release(held[0])
    await third


async def test_devices_are_distinct_match_the_request_and_spread(make: Callable[..., LeaseBook]) -> None:
    book = make(3)
    assert (await book.acquire(BOTH_A100, holder="a")).devices == ("gpu:0", "gpu:1")
    assert (await book.acquire(ANY, holder="b")).devices == ("gpu:2",)
    assert len((await book.acquire(A100, holder="c")).devices) == 1
    assert sorted((await book.acquire(ResourceRequest(gpu_count=3), holder="d")).devices) == ["gpu:0", "gpu:1", "gpu:2"]
    assert len({d for h in book.snapshot() for d in h.lease.devices}) == 3


async def test_enforced_cpu_takes_no_gpu(make: Callable[..., LeaseBook]) -> None:
    assert (await make().acquire(ResourceRequest(gpu_count=1, enforce_cpu=True), holder="a")).devices == ("cpu",)


async def test_first_come_first_served(make: Callable[..., LeaseBook]) -> None:
    book, order = make(), []
    first = await book.acquire(CPU, holder="first")

    async def one(name: str) -> None:
        lease = await book.acquire(CPU, holder=name)
        order.append(name)
        await book.release(lease)

    tasks = []
    for name in "abcdef":
        tasks.append(asyncio.create_task(one(name)))
        await asyncio.sleep(0.002)
    await book.release(first)
    await asyncio.gather(*tasks)
    assert order == list("abcdef")


async def test_a_large_request_does_not_starve_and_blocks_only_what_it_could_use(
    make: Callable[..., LeaseBook],
) -> None:
    book = make(patience=0)
    small = await book.acquire(A100, holder="small")
    large = ask(book, BOTH_A100, "large")
    assert await waits(large)
    later = ask(book, A100, "later")
    assert await waits(later)  # one a100 is free, but it is the large one's
    assert (await book.acquire(ResourceRequest(gpu_count=1, gpu_type="l4"), holder="other")).devices == ("gpu:2",)
    await book.acquire(CPU, holder="cpu")
    await book.release(small)
    assert (await large).devices == ("gpu:0", "gpu:1")
    assert await waits(later)
    await book.release(await large)
    await later


async def test_what_can_never_be_had_is_refused_at_once(make: Callable[..., LeaseBook]) -> None:
    with pytest.raises(DispatchError, match="stage x needs 3x a100, this machine has 2x a100 80 GiB, 1x l4 24 GiB"):
        await make().acquire(ResourceRequest(gpu_count=3, gpu_type="a100"), holder="stage x")


async def test_waiting_callers_are_told_what_they_wait_for_and_only_when_it_changes(
    make: Callable[..., LeaseBook],
) -> None:
    book, told = make(), []
    first = await book.acquire(CPU, holder="stage a")
    second = ask(book, CPU, "stage b")
    await asyncio.sleep(0)
    third = asyncio.create_task(book.acquire(CPU, holder="stage c", on_wait=told.append))
    assert await waits(third)
    await book.release(first)
    await second
    pid = os.getpid()
    last = f"waiting for an engine slot on cpu: held by stage b (process {pid})"
    async with asyncio.timeout(60):
        while told[-1] != last:
            await asyncio.sleep(0.01)
    assert not third.done()
    assert told[0] == f"waiting for an engine slot on cpu: held by stage a (process {pid}), 1 ahead in the queue"
    # Between the two it may have seen the moment in which nobody held the slot; never the same twice.
    assert len(told) == len(set(told)) <= 3
    third.cancel()
    await asyncio.wait([third])


async def test_an_asker_that_does_not_wait_gets_a_lease_or_none_and_leaves_no_trace(
    make: Callable[..., LeaseBook],
) -> None:
    book = make()
    first = await book.try_acquire(A100, holder="a")
    assert first is not None
    assert await book.try_acquire(BOTH_A100, holder="b") is None
    second = await book.try_acquire(A100, holder="c")
    assert second is not None
    waiting = ask(book, A100, "d")
    assert await waits(waiting)
    await book.release(first)
    assert await book.try_acquire(A100, holder="e") is None  # what is free is for the one that waits
    assert (await waiting).devices == first.devices
    with pytest.raises(DispatchError, match="needs 9x gpu"):
        await book.try_acquire(ResourceRequest(gpu_count=9), holder="f")
    assert [h.lease.holder for h in book.snapshot()] == ["c", "d"]


async def test_a_cancelled_waiter_leaves_the_queue(make: Callable[..., LeaseBook]) -> None:
    book = make()
    first = await book.acquire(CPU, holder="a")
    second, third = ask(book, CPU, "b"), ask(book, CPU, "c")
    assert await waits(third)
    second.cancel()
    await book.release(first)
    assert (await third).holder == "c"


async def test_never_more_holders_than_slots(make: Callable[..., LeaseBook]) -> None:
    book, now, most = make(3), 0, 0

    async def one(i: int) -> None:
        nonlocal now, most
        lease = await book.acquire(CPU, holder=str(i))
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1
        await book.release(lease)

    await asyncio.gather(*(one(i) for i in range(20)))
    assert (most, now, book.snapshot()) == (3, 0, ())


async def test_file_books_share_one_state(tmp_path: Path) -> None:
    one, two = FileLeaseBook(tmp_path, HARDWARE), FileLeaseBook(tmp_path, HARDWARE)
    lease = await one.acquire(CPU, holder="a")
    other = ask(two, CPU, "b")
    assert await waits(other)
    await two.release(lease)
    await other
    assert [h.lease.holder for h in one.snapshot()] == ["b"]


async def test_holders_and_waiters_that_died_are_dropped(tmp_path: Path) -> None:
    book = FileLeaseBook(tmp_path, HARDWARE)
    await book.acquire(CPU, holder="a")
    state = json.loads(book_file(tmp_path).read_text())
    row = state["held"][0]
    row["pid"], row["start"] = 1, "another boot"  # process 1 lives, but it is not the one that took the lease
    state["queue"] = [{**row, "id": "w", "devices": [], "ticket": 0}]
    book_file(tmp_path).write_text(json.dumps(state))
    assert (await book.acquire(CPU, holder="b")).devices == ("cpu",)
    assert [h.lease.holder for h in book.snapshot()] == ["b"]


async def test_a_damaged_book_starts_empty(tmp_path: Path) -> None:
    book = FileLeaseBook(tmp_path, HARDWARE)
    book_file(tmp_path).write_text('{"held": [{"of": "another version"}]}')
    assert (await book.acquire(CPU, holder="a")).holder == "a"


async def test_a_lock_that_is_never_free_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_book, "_LOCK_SECONDS", 0.02)
    with book_file(tmp_path).with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DispatchError, match="locked by a process that does not respond"):
            await FileLeaseBook(tmp_path, HARDWARE).acquire(CPU, holder="a")


async def test_an_unwritable_home_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(DispatchError, match="cannot write the lease book"):
        await FileLeaseBook(tmp_path, HARDWARE).acquire(CPU, holder="a")


async def test_what_cannot_be_given_back_now_is_given_back_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By a process that holds the lock and does not go on, or a full disk; whoever ends does not fail for that."""
    monkeypatch.setattr(lease_book, "_LOCK_SECONDS", 0.02)
    book = FileLeaseBook(tmp_path, HARDWARE)
    lease = await book.acquire(CPU, holder="a")
    with book_file(tmp_path).with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        await book.release(lease)
    assert "a will be removed from the lease book later: the lease book is locked" in caplog.text
    assert [held.lease for held in book.snapshot()] == [lease]
    assert (await book.try_acquire(CPU, holder="b")) is not None
    assert [held.lease.holder for held in FileLeaseBook(tmp_path, HARDWARE).snapshot()] == ["b"]


async def test_tasks_of_one_engine_share_its_lease(make: Callable[..., LeaseBook]) -> None:
    book = make(1)
    first = await book.acquire(CPU, holder="a", share="engine")
    second = await asyncio.wait_for(book.acquire(CPU, holder="b", share="engine"), 60)
    assert second.devices == first.devices
    other = asyncio.create_task(book.acquire(CPU, holder="c", share="other"))
    await asyncio.sleep(0.02)
    late = asyncio.create_task(book.acquire(CPU, holder="d", share="engine"))
    await asyncio.sleep(0.02)
    assert not other.done()
    assert not late.done()  # else those who come all the time would keep `c` waiting for ever
    await book.release(first)
    await asyncio.sleep(0.02)
    assert not other.done()
    await book.release(second)
    await book.release(await asyncio.wait_for(other, 60))
    await book.release(await asyncio.wait_for(late, 60))
    assert book.snapshot() == ()
