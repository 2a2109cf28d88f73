"""Dispatchers of one machine: leases, hosts, and which dispatcher is in force."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.errors import ArtifactError, DispatchError
from mloc_prefect.execution.hosts import MemoryHosts
from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionRequest
from mloc_prefect.flow import spec_parameters
from mloc_prefect.flow.dispatcher import (
    InProcessDispatcher,
    MemoryDispatcher,
    StageJob,
    clamped,
    current_dispatcher,
    interpreter,
    use_dispatcher,
)
from mloc_prefect.hardware.gpus import DeviceMemory
from mloc_prefect.hardware.inventory import GpuDevice, Inventory
from mloc_prefect.leases import DeviceReturn, MemoryLeaseBook
from mloc_prefect.plan.resources import ResourceRequest
from mloc_prefect.settings import get_settings
from mloc_prefect.tasks.base import ExecutorRef

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIGHT = ExecutorRef("mloc_prefect.executors.echo:EchoExecutor", engine=False)
ENGINE = ExecutorRef("mloc_prefect.executors.echo:EchoExecutor", environment="special")
GIB = 1 << 30


class Place:
    """A machine with one GPU in memory."""

    def __init__(self, hosts: MemoryHosts, root: Path) -> None:
        self.inventory = Inventory(4, None, (GpuDevice(0, "l4", 24 * GIB),))
        self.leases = MemoryLeaseBook(self.inventory)
        self.hosts, self.root, self.count = hosts, root, 0
        self.dispatcher = InProcessDispatcher(
            settings=get_settings(home=root), hosts=hosts, leases=self.leases, inventory=self.inventory
        )

    def job(self, executor: ExecutorRef, spec: dict[str, Any] | None = None, **resources: Any) -> StageJob:
        self.count += 1
        directory = self.root / "t" / "attempts" / f"1-{self.count}"
        directory.mkdir(parents=True)
        request = ExecutionRequest(
            f"t{self.count}",
            f"stage {self.count}",
            "echo",
            executor.path,
            spec or {},
            str(self.root / "t"),
            str(directory),
        )
        return StageJob(request=request, executor=executor, resources=ResourceRequest(**resources))


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with MemoryHosts() as hosts:
        yield Place(hosts, tmp_path)


async def test_light_work_takes_no_lease(place: Place) -> None:
    held = await place.leases.acquire(ResourceRequest(), holder="somebody")
    result = await place.dispatcher.dispatch(place.job(LIGHT, {"x": 1}), on_event=lambda _: None)
    assert Path(result.path).is_file()
    assert place.hosts.starts[0].devices == ()
    await place.leases.release(held)


async def test_an_engine_runs_on_its_leased_device_and_gives_it_back(place: Place) -> None:
    await place.dispatcher.dispatch(place.job(ENGINE, gpu_count=1), on_event=lambda _: None)
    await place.dispatcher.dispatch(place.job(ENGINE), on_event=lambda _: None)
    assert [h.devices for h in place.hosts.starts] == [("gpu:0",), ("cpu",)]
    assert place.leases.snapshot() == ()


async def test_what_is_waited_for_is_told(place: Place) -> None:
    events: list[ExecutionEvent] = []
    held = await place.leases.acquire(ResourceRequest(gpu_count=1), holder="somebody")
    task = asyncio.create_task(place.dispatcher.dispatch(place.job(ENGINE, gpu_count=1), on_event=events.append))
    while not events:
        await asyncio.sleep(0.001)
    assert events[0].kind == "waiting"
    assert events[0].data["reason"].startswith("waiting for an engine slot on 1 gpu of gpu:0: held by somebody")
    await place.leases.release(held)
    await task


async def test_a_cancelled_attempt_gives_its_lease_back(place: Place) -> None:
    task = asyncio.create_task(
        place.dispatcher.dispatch(place.job(ENGINE, {"echo": {"delay": 30}}), on_event=lambda _: None)
    )
    while not place.leases.snapshot():
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert place.leases.snapshot() == ()


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (ResourceRequest(gpu_count=1, gpu_type="l4"), ResourceRequest(gpu_count=1, gpu_type="l4")),
        (ResourceRequest(gpu_count=4, gpu_type="a100", gpu_memory_bytes=80 * GIB), ResourceRequest(gpu_count=1)),
        (ResourceRequest(gpu_count=4, enforce_cpu=True), ResourceRequest(gpu_count=4, enforce_cpu=True)),
    ],
)
def test_requests_are_cut_down_to_the_machine(wanted: ResourceRequest, expected: ResourceRequest) -> None:
    assert clamped(wanted, Inventory(1, None, (GpuDevice(0, "l4", 24 * GIB),))) == expected


def test_without_a_gpu_a_large_request_runs_on_the_cpu() -> None:
    assert clamped(ResourceRequest(gpu_count=4), Inventory(1)).gpu_count == 0


def test_the_interpreter_of_an_environment_is_a_setting(tmp_path: Path) -> None:
    settings = get_settings(python={"special": tmp_path / "python"})
    assert interpreter(ENGINE, settings) == str(tmp_path / "python")
    assert interpreter(LIGHT, settings) != str(tmp_path / "python")


async def test_the_dispatcher_in_force_belongs_to_its_context() -> None:
    one, two = (MemoryDispatcher(lambda *_: {}) for _ in range(2))

    async def other() -> None:
        with use_dispatcher(two):
            await asyncio.sleep(0.001)
            assert current_dispatcher() is two

    assert current_dispatcher() is None
    with use_dispatcher(one):
        await asyncio.gather(other(), other())
        assert current_dispatcher() is one
    assert current_dispatcher() is None


def test_large_specs_go_by_hash(tmp_path: Path) -> None:
    small, large = "a: ü", "x" * spec_parameters.BY_VALUE + "ü"
    assert spec_parameters.pack(small, tmp_path) == small
    packed = spec_parameters.pack(large, tmp_path)
    assert packed == spec_parameters.pack(large, tmp_path)
    assert packed.startswith("sha256:")
    assert spec_parameters.unpack(packed, tmp_path) == large
    assert spec_parameters.unpack(small, tmp_path) == small


def test_a_spec_that_is_gone_or_damaged_is_named(tmp_path: Path) -> None:
    packed = spec_parameters.pack("x" * (spec_parameters.BY_VALUE + 1), tmp_path)
    with pytest.raises(ArtifactError, match="is not at") as caught:
        spec_parameters.unpack(packed, tmp_path / "elsewhere")
    assert "share one results root" in (caught.value.hint or "")
    next((tmp_path / ".specs").iterdir()).write_text("other")
    with pytest.raises(ArtifactError, match="is damaged"):
        spec_parameters.unpack(packed, tmp_path)


async def test_who_asks_and_does_not_wait_has_a_priority_too(place: Place) -> None:
    place.leases.rules = replace(place.leases.rules, patience=0.0)
    choose = place.dispatcher.choose_engine
    job = place.job(ENGINE, gpu_count=1, gpu_memory_bytes=4 * GIB)
    small = choose(job)
    large = choose(replace(place.job(ENGINE, gpu_count=1, gpu_memory_bytes=22 * GIB), priority=-1))
    assert await place.dispatcher.try_lease(small) is not None
    waiting = asyncio.create_task(place.dispatcher.wait_lease(large))
    await asyncio.sleep(0)
    assert await place.dispatcher.try_lease(choose(replace(job, priority=-5))) is None
    assert await place.dispatcher.try_lease(small) is not None
    waiting.cancel()


async def test_what_can_never_be_leased_is_refused(place: Place) -> None:
    with pytest.raises(DispatchError, match="needs 2x gpu"):
        await place.leases.acquire(ResourceRequest(gpu_count=2), holder="x")


async def test_the_lease_of_a_failed_engine_is_kept_until_its_memory_is_free(place: Place) -> None:
    in_use = [GIB]
    returns = DeviceReturn(
        30.0, hosts=list, read=lambda devices: {d: DeviceMemory(in_use[0], {}) for d in devices}, poll=0.001
    )
    dispatcher = InProcessDispatcher(
        settings=get_settings(home=place.root),
        hosts=place.hosts,
        leases=place.leases,
        inventory=place.inventory,
        returns=returns,
    )
    events: list[ExecutionEvent] = []
    job = place.job(ENGINE, {"echo": {"delay": 30}}, gpu_count=1)
    task = asyncio.create_task(dispatcher.dispatch(job, on_event=events.append))
    while not place.leases.snapshot():
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    in_use[0] = 20 * GIB
    task.cancel()
    await asyncio.sleep(0.1)
    assert place.leases.snapshot()
    assert not task.done()
    in_use[0] = GIB
    with pytest.raises(asyncio.CancelledError):
        await task
    assert place.leases.snapshot() == ()
    in_use[0] = GIB
    await dispatcher.dispatch(place.job(ENGINE, gpu_count=1), on_event=events.append)
    assert place.leases.snapshot() == (), "an engine that stays warm is not waited for"
