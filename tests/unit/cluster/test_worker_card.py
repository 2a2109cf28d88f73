"""What workers tell each other: cards, the directory, who is there by whose clock, and why something waits."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from mloc_prefect.cluster.cluster_view import ClusterView, WaitReasons, why_waiting
from mloc_prefect.cluster.identity import WorkerProcess, slug, worker_id
from mloc_prefect.cluster.membership import MemoryMembership
from mloc_prefect.cluster.requirement_queues import RequirementClass, RequirementQueue, in_order
from mloc_prefect.cluster.worker_card import LIMIT, Busy, WorkerCard
from mloc_prefect.errors import MlocError
from mloc_prefect.hardware.inventory import Inventory
from mloc_prefect.plan.resources import ResourceRequest
from mloc_prefect.settings import get_settings
from tests.support.cards import GIB, card


class Clock:
    """A clock that stands still."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


# --- identity ---------------------------------------------------------------------------------------------------------


def test_an_id_is_the_configured_one_or_new_each_time():
    assert worker_id(get_settings(worker_id=" node-7 ")) == "node-7"
    one, two = worker_id(get_settings()), worker_id(get_settings())
    assert one != two
    assert one.rpartition("-")[0] == two.rpartition("-")[0]


@pytest.mark.parametrize("name", ["a/b", "50%", "x" * 201])
def test_an_id_that_prefect_refuses_is_named(name: str):
    with pytest.raises(MlocError, match="MLOC_WORKER_ID"):
        worker_id(get_settings(worker_id=name))


def test_slugs_of_different_names_differ():
    names = ["a", "A", "a-b", "a_b", "a.b", "ä"]
    assert len({slug(name) for name in names}) == len(names)
    assert all(set(slug(name)) <= set("abcdefghijklmnopqrstuvwxyz0123456789_") for name in names)


def test_a_process_is_seen_dead_only_from_its_own_machine():
    own = WorkerProcess.own()
    assert own.pid == os.getpid()
    assert not own.seen_dead()
    assert replace(own, mark="another start").seen_dead()
    assert not replace(own, where="elsewhere", mark="another start").seen_dead()


# --- cards ------------------------------------------------------------------------------------------------------------


def test_a_card_survives_its_text():
    full = card(
        "w",
        "a100:80",
        tags=("lab",),
        used=(("gpu:0", 0, 40 * GIB),),
        slots=3,
        warm=("e1",),
        models=("m",),
        leases=(Busy(holder="h", devices=("gpu:0",)),),
        runs=("r",),
        beat=7,
    )
    assert WorkerCard.from_json(full.to_json()) == full


def test_a_card_of_a_crowded_worker_fits_a_variable():
    busy = tuple(Busy(holder=f"a task with quite a long name, number {n}", devices=("gpu:0",)) for n in range(200))
    text = card("w", *["a100:80"] * 16, leases=busy, runs=tuple(f"{n:036}" for n in range(500))).to_json()
    assert len(text) <= LIMIT
    shown = WorkerCard.from_json(text)
    assert len(shown.inventory.gpus) == 16
    assert shown.runs


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"id": "w"}'])
def test_what_is_no_card_is_refused(text: str):
    with pytest.raises(ValueError, match=r"."):
        WorkerCard.from_json(text)


GPU = ResourceRequest(gpu_count=1)


@pytest.mark.parametrize(
    ("fields", "request_", "room"),
    [
        ({}, GPU, 2),
        ({"used": (("gpu:0", 1, 0),)}, GPU, 1),
        ({"used": (("gpu:0", 1, 0),)}, ResourceRequest(gpu_count=2), 0),
        ({"used": (("gpu:0", 0, 40 * GIB),)}, ResourceRequest(gpu_count=1, gpu_memory_bytes=40 * GIB), 3),
        ({"slots": 1}, GPU, 1),
        ({"slots": 0}, GPU, 0),
        ({"draining": True}, GPU, 0),
        ({"role": "coordinator"}, GPU, 0),
        ({"used": (("cpu", 1, 0),)}, ResourceRequest(), 0),
        ({}, ResourceRequest(tags=("lab",)), 0),
        ({}, ResourceRequest(cpus=9), 0),
    ],
)
def test_room_of_a_worker(fields: dict[str, Any], request_: ResourceRequest, room: int):
    worker = card("w", "a100:80", "a100:80", **fields)
    assert worker.room(request_) == room
    assert worker.has_room(request_) == (room > 0)


# --- who is there -----------------------------------------------------------------------------------------------------


async def test_a_worker_lives_as_long_as_its_beat_grows():
    directory, clock = MemoryMembership(), Clock()
    view = ClusterView(directory, 10.0, clock=clock)
    one, two = card("one"), card("two")
    await directory.publish(one)
    await directory.publish(two)
    assert await view.refresh()
    for beat in range(1, 4):
        clock.now += 4
        await directory.publish(replace(one, beat=beat))
        await view.refresh()
    assert [c.id for c in view.live] == ["one"]
    assert [c.id for c in view.lost] == ["two"]


async def test_one_that_beats_slowly_is_not_taken_for_dead_between_two_beats():
    directory, clock = MemoryMembership(), Clock()
    view = ClusterView(directory, 10.0, clock=clock)
    await directory.publish(card("slow", heartbeat=30.0))
    for _ in range(22):
        await view.refresh()
        clock.now += 4
    await view.refresh()
    assert [c.id for c in view.live] == ["slow"]
    clock.now += 4
    await view.refresh()
    assert [c.id for c in view.lost] == ["slow"]


async def test_nobody_dies_of_a_server_that_is_slow():
    """Its heartbeats wait as long as our look at them."""
    directory, clock = MemoryMembership(), Clock()
    view = ClusterView(directory, 10.0, clock=clock)
    await directory.publish(card("one"))
    read, seconds = directory.read, 2.0

    async def slow() -> Any:
        clock.now += seconds
        return await read()

    directory.read = slow  # type: ignore[method-assign]
    for _ in range(4):
        await view.refresh()
        clock.now += 2
    assert view.lost == (), "12 s after its heartbeat was last seen"
    await view.refresh()
    assert [c.id for c in view.lost] == ["one"]


async def test_nobody_dies_while_the_server_is_away():
    directory, clock = MemoryMembership(), Clock()
    view = ClusterView(directory, 10.0, clock=clock)
    await directory.publish(card("one"))
    await view.refresh()
    read = directory.read

    async def down() -> Any:
        raise httpx.ConnectError("down")

    directory.read = down  # type: ignore[method-assign]
    for _ in range(10):
        clock.now += 4
        assert not await view.refresh()
    directory.read = read  # type: ignore[method-assign]
    assert await view.refresh()
    assert view.lost == ()
    for _ in range(3):
        clock.now += 4
        await view.refresh()
    assert [c.id for c in view.lost] == ["one"]


def waiting_job() -> Any:
    return SimpleNamespace(resources=ResourceRequest(cpus=1), leased=False)


async def test_no_worker_online_is_said_only_by_a_current_look():
    """A look at the cards that takes longer than the patience of a worker says nothing about it."""
    directory, clock = MemoryMembership(), Clock()
    view = ClusterView(directory, 10.0, clock=clock)
    assert WaitReasons(view).why(waiting_job()) == "needs 1 cpu; the list of workers cannot be read at the moment"
    assert await view.refresh()
    assert WaitReasons(view).why(waiting_job()) == "needs 1 cpu; no worker online"
    await directory.publish(card("one", inventory=Inventory(4)))
    assert await view.refresh()
    clock.now += 9
    assert "one should take it soon" in WaitReasons(view).why(waiting_job())
    clock.now += 60
    assert WaitReasons(view).why(waiting_job()) == "needs 1 cpu; the list of workers cannot be read at the moment"
    assert [c.id for c in view.live] == ["one"], "it was not seen to be silent"
    assert view.lost == ()


async def test_a_new_process_under_an_old_name_is_alive():
    directory, clock = MemoryMembership(), Clock()
    view = ClusterView(directory, 10.0, clock=clock)
    await directory.publish(card("one", beat=500))
    await view.refresh()
    for _ in range(3):
        clock.now += 4
        await view.refresh()
    assert view.lost
    await directory.publish(card("one", incarnation="i2", beat=1))
    await view.refresh()
    assert view.lost == ()
    assert [c.incarnation for c in view.live] == ["i2"]


async def test_the_own_card_needs_no_look_and_never_dies():
    directory, clock = MemoryMembership(), Clock()
    own = card("me", process=WorkerProcess.own())
    view = ClusterView(directory, 10.0, own=lambda: own, clock=clock)
    assert view.live == (own,)
    await directory.publish(own)
    for _ in range(4):
        await view.refresh()
        clock.now += 4
    assert view.lost == ()
    assert view.others == ()


async def test_locks_are_taken_once():
    directory = MemoryMembership()
    assert await directory.lock("w.i1", "one")
    assert not await directory.lock("w.i1", "two")
    assert not await directory.lock("w.i1", "one")
    assert await directory.locked("w.i1")
    await directory.unlock("w.i1")
    assert not await directory.locked("w.i1")


# --- why something waits ----------------------------------------------------------------------------------------------

TWO = ResourceRequest(gpu_count=2, gpu_type="a100", gpu_memory_bytes=80 * GIB)
BUSY = {"used": (("gpu:0", 1, 0),), "leases": (Busy(holder="other", devices=("gpu:0",)),)}


@pytest.mark.parametrize(
    ("request_", "cards", "words"),
    [
        (TWO, [], "needs 2x a100 with 80 GiB; no worker online"),
        (TWO, [card("c", role="coordinator")], "needs 2x a100 with 80 GiB; no worker online"),
        (
            TWO,
            [card("a", "l4:24"), card("b"), card("c")],
            "needs 2x a100 with 80 GiB; 3 workers online, largest free: 1x l4 24 GiB",
        ),
        (GPU, [card("a"), card("b")], "needs 1x gpu; 2 workers online, largest free: no gpu"),
        (
            GPU,
            [card("a", "l4:24", **BUSY)],
            "needs 1x gpu; 1 worker online, a could run it but is busy with other",
        ),
        (GPU, [card("a", "l4:24")], "needs 1x gpu; 1 worker online, a should take it soon"),
        (
            ResourceRequest(cpus=64, memory_bytes=8 * GIB),
            [card("a", cpus=16)],
            "needs 64 cpu and 8 GiB of memory; 1 worker online, largest free: 16 cpu, 64 GiB",
        ),
        (
            ResourceRequest(tags=("lab",)),
            [card("a", tags=("office",))],
            "needs tag lab; 1 worker online, largest free: 8 cpu, 64 GiB (tags office)",
        ),
    ],
)
def test_words(request_: ResourceRequest, cards: list[WorkerCard], words: str):
    assert why_waiting(request_, cards) == words


# --- queues -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needs", "name"),
    [
        (RequirementClass(TWO), "gpu-2-a100-80g"),
        (RequirementClass(ResourceRequest(cpus=1, memory_bytes=64 << 20), lease=False), "light-c1-m64m"),
        (RequirementClass(ResourceRequest()), "cpu"),
        (RequirementClass(ResourceRequest(gpu_count=1, enforce_cpu=True)), "cpu"),
        (RequirementClass(GPU, priority=5), "gpu-1-p5"),
        (RequirementClass(GPU, priority=-1), "gpu-1-p-1"),
        (RequirementClass(ResourceRequest(gpu_count=1, gpu_exclusive=True, tags=("lab",))), "gpu-1-whole-t.lab"),
    ],
)
def test_a_queue_says_what_its_runs_need(needs: RequirementClass, name: str):
    assert needs.name == name
    assert RequirementClass.from_description(needs.description) == needs


def test_odd_names_of_devices_stay_apart():
    types = ["nvidia a100-sxm4-80gb", "nvidia a100 sxm4 80gb", "a/b", "a%b"]
    names = {RequirementClass(ResourceRequest(gpu_count=1, gpu_type=t)).name for t in types}
    assert len(names) == len(types)
    assert not {"/", "%", " "} & set("".join(names))


@pytest.mark.parametrize("text", [None, "", "my queue", "mloc: no json", "mloc: {}", 'mloc: {"request": {"x": 1}}'])
def test_queues_of_others_are_plain(text: str | None):
    assert RequirementClass.from_description(text) is None


def test_queues_are_served_by_the_priority_of_specs_then_by_prefects():
    low, high = RequirementClass(GPU, priority=-1), RequirementClass(GPU, priority=5)
    queues = [
        RequirementQueue("1", "low", 1, low),
        RequirementQueue("2", "plain", 3),
        RequirementQueue("3", "own", 2, RequirementClass(GPU)),
        RequirementQueue("4", "high", 9, high),
    ]
    assert [queue.name for queue in in_order(queues)] == ["high", "own", "plain", "low"]
