"""What a worker runs in place, and what it leaves to the pool."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import anyio

from mloc_prefect.errors import DispatchError
from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionRequest, ExecutionResult
from mloc_prefect.flow.dispatcher import LocalJob, StageJob
from mloc_prefect.leases import Lease
from mloc_prefect.plan.resources import ResourceRequest
from mloc_prefect.tasks.base import ExecutorRef
from mloc_prefect.worker.local_placement import LocalPlacement, StageSlots
from mloc_prefect.worker.placement import PlacingDispatcher

LIGHT = StageJob(
    request=ExecutionRequest("t", "t", "echo", "x:Y", {}, "/t", "/t/a"),
    executor=ExecutorRef("x:Y", engine=False),
    resources=ResourceRequest(),
)
LEASED = replace(LIGHT, resources=ResourceRequest(gpu_count=1))
CARD: Any = SimpleNamespace(id="here", could_run=lambda _: True, has_room=lambda _, lease: True)


class Machine:
    """The own machine: its dispatcher runs attempts until `go`."""

    def __init__(self, *, broken: bool = False) -> None:
        self.broken, self.go = broken, asyncio.Event()
        self.dispatcher: Any = self

    def choose_engine(self, job: StageJob) -> LocalJob:
        return LocalJob(job)

    async def try_lease(self, _local: LocalJob) -> Lease | None:
        if self.broken:
            raise DispatchError("cannot write the lease book /run/x: Read-only file system")
        return Lease("1", ("gpu:0",), "t")

    async def dispatch_leased(self, _local: LocalJob, _lease: Lease | None, *, on_event: Any) -> ExecutionResult:
        await self.go.wait()
        return ExecutionResult("here")


class Pool:
    """The pool, which runs everything at once."""

    async def dispatch(self, _job: StageJob, **_: Any) -> ExecutionResult:
        return ExecutionResult("pool")


class Site:
    """A coordinator on a worker with a limit."""

    def __init__(self, machine: Machine, limit: int) -> None:
        limiter = anyio.CapacityLimiter(limit)
        self.machine, self.slots = machine, StageSlots(lambda: limiter)
        here = LocalPlacement("here", machine, self.slots, lambda: True, lambda: None)  # type: ignore[arg-type]
        view: Any = SimpleNamespace(live=(CARD,), others=())
        self.placing = PlacingDispatcher(local=here, pool=Pool(), view=view)  # type: ignore[arg-type]
        self.events: list[ExecutionEvent] = []

    def start(self, job: StageJob) -> asyncio.Task[ExecutionResult]:
        return asyncio.create_task(self.placing.dispatch(job, on_event=self.events.append))


async def test_light_stages_keep_to_the_limit_of_their_worker() -> None:
    """Those for which there is no slot wait on the pool, whose runs take their slots from Prefect."""
    site = Site(Machine(), 2)
    runs = [site.start(LIGHT) for _ in range(5)]
    await asyncio.sleep(0.05)
    assert site.slots.free == 0
    assert [run.done() and run.result().path for run in runs] == [False, False, "pool", "pool", "pool"]
    site.machine.go.set()
    assert [(await run).path for run in runs[:2]] == ["here", "here"]
    assert site.slots.free == 2


async def test_a_cancelled_light_stage_gives_its_slot_back() -> None:
    site = Site(Machine(), 1)
    run = site.start(LIGHT)
    await asyncio.sleep(0.01)
    run.cancel()
    await asyncio.wait({run})
    assert site.slots.free == 1


async def test_a_machine_that_cannot_lease_now_leaves_the_stage_to_the_pool() -> None:
    site = Site(Machine(broken=True), 1)
    assert (await site.start(LEASED)).path == "pool"
    (said,) = [event.data for event in site.events if event.kind == "log"]
    assert said == {
        "message": "not run at here: cannot write the lease book /run/x: Read-only file system",
        "level": "warning",
    }
    assert site.slots.free == 1
