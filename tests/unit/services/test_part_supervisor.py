"""What `mloc up` keeps running, with parts that are no processes."""

from __future__ import annotations

import asyncio
import errno

import pytest

from mloc_prefect.errors import DispatchError
from mloc_prefect.process.backoff import Backoff
from mloc_prefect.services.up.part_supervisor import RESTARTS, PartSupervisor

AT_ONCE = Backoff(first=0.0, most=0.0)


class FakePart:
    """A part that ends when it is told to."""

    def __init__(self, name: str, journal: list[str], *, fails: int = 0, error: Exception | None = None) -> None:
        self.error = error
        self.name = name
        self.log = None
        self.pid: int | None = None
        self.fails = fails
        self._journal = journal
        self._end: asyncio.Future[str] | None = None

    async def start(self) -> None:
        await asyncio.sleep(0)
        if self.fails:
            self.fails -= 1
            self._journal.append(f"{self.name} fails")
            raise self.error or DispatchError(f"no {self.name}")
        self._journal.append(f"{self.name} starts")
        self.pid = 1
        self._end = asyncio.get_running_loop().create_future()

    async def ended(self) -> str:
        assert self._end is not None
        return await asyncio.shield(self._end)

    async def stop(self, grace: float) -> None:
        self._journal.append(f"{self.name} stops {grace:g}")

    def die(self, how: str = "SIGKILL") -> None:
        assert self._end is not None
        self._end.set_result(how)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_groups_start_in_order_and_stop_in_the_opposite_one():
    journal: list[str] = []
    a, b, c = (FakePart(name, journal) for name in "abc")
    supervisor = PartSupervisor([[a], [b, c]], report=journal.append)
    await supervisor.start()
    await supervisor.stop(grace=2)
    assert journal == ["a starts", "b starts", "c starts", "b stops 2", "c stops 2", "a stops 2"]


async def test_a_part_that_does_not_start_at_first_is_an_error():
    journal: list[str] = []
    supervisor = PartSupervisor([[FakePart("a", journal)], [FakePart("b", journal, fails=1)]], report=journal.append)
    with pytest.raises(DispatchError, match="no b"):
        await supervisor.start()
    await supervisor.stop(grace=0)
    assert journal[-2:] == ["b stops 0", "a stops 0"]


async def test_a_part_that_ends_is_started_until_it_runs_again():
    journal: list[str] = []
    part = FakePart("a", journal)
    supervisor = PartSupervisor([[part]], report=journal.append, backoff=AT_ONCE)
    await supervisor.start()
    part.fails = 2
    part.die("exit status 1")
    await settle()
    assert journal[1] == "a ended (exit status 1); starting it again in 0 s"
    assert [line for line in journal if not line.startswith("a does not")][1:] == [
        journal[1],
        "a fails",
        "a fails",
        "a starts",
        "a is back",
    ]
    await supervisor.stop()


FULL = OSError(errno.ENOSPC, "No space left on device")


async def test_a_part_comes_back_after_its_disk_was_full():
    journal: list[str] = []
    part, neighbour = FakePart("a", journal, error=FULL), FakePart("b", journal)
    published: list[tuple[int | None, ...]] = []
    room = True

    def publish() -> None:
        if not room:
            raise FULL
        published.append((part.pid, neighbour.pid))

    supervisor = PartSupervisor([[part, neighbour]], report=journal.append, changed=publish, backoff=AT_ONCE)
    await supervisor.start()
    room, part.fails = False, 3
    part.pid = None
    part.die()
    neighbour.die()
    await settle()
    assert "what runs could not be published, will retry: [Errno 28] No space left on device" in journal
    assert "a does not start: [Errno 28] No space left on device; trying again in 0 s" in journal
    assert {"a is back", "b is back"} <= set(journal), "no watch has ended"
    assert sum(line.startswith("what runs could not be published") for line in journal) == 1
    room = True
    await settle()
    assert published[-1] == (1, 1), "published without another change"
    await supervisor.stop()


async def test_nothing_is_started_again_after_the_stop():
    journal: list[str] = []
    part = FakePart("a", journal)
    supervisor = PartSupervisor([[part]], report=journal.append, backoff=AT_ONCE)
    await supervisor.start()
    await supervisor.stop(grace=0)
    part.die()
    await settle()
    assert journal == ["a starts", "a stops 0"]


def test_the_waits_double_up_to_a_bound():
    assert [RESTARTS.after(n) for n in (0, 1, 2, 10, 1000)] == [0.5, 1.0, 2.0, 30.0, 30.0]


async def test_short_lives_count_and_a_long_one_forgets_them():
    journal: list[str] = []
    now = 0.0
    part = FakePart("a", journal)
    backoff = Backoff(first=1e-6, most=1.0)
    supervisor = PartSupervisor([[part]], report=journal.append, backoff=backoff, steady=60.0, clock=lambda: now)
    await supervisor.start()
    for _ in range(3):
        part.die()
        await asyncio.sleep(0.001)
        await settle()
    now = 100.0
    part.die()
    await asyncio.sleep(0.001)
    await settle()
    await supervisor.stop()
    waits = [line.split(" in ")[1] for line in journal if "starting it again" in line]
    assert waits == ["1e-06 s", "2e-06 s", "4e-06 s", "1e-06 s"]
