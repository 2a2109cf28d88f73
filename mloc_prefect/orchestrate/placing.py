"""`PlacingDispatcher`: where an attempt runs. Here, when there is room at once; else on the pool; else it waits there.

A stage goes to the pool although it would fit here when another worker suits it better (one that holds its model warm,
one on which it has not failed, one whose card it fits more tightly), and when others wait for the same devices.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Protocol

from mloc_prefect.errors import DispatchError, ExecutionError
from mloc_prefect.execution.hosttypes import engine_key
from mloc_prefect.execution.protocol import ExecutionEvent
from mloc_prefect.orchestrate.lost import WorkerLostError, WorkerStoppedError
from mloc_prefect.orchestrate.preflight import is_unwritten
from mloc_prefect.worker.gpus import matching_gpus, wanted_gpus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mloc_prefect.execution.protocol import ExecutionResult
    from mloc_prefect.orchestrate.dispatch import StageJob
    from mloc_prefect.orchestrate.pooled import WorkPoolDispatcher
    from mloc_prefect.plan.model import ResourceRequest
    from mloc_prefect.worker.card import WorkerCard
    from mloc_prefect.worker.leases import Lease
    from mloc_prefect.worker.view import WorkersView

_REMEMBERED = 1000
_LOOK_SECONDS = 5.0


class HerePlace(Protocol):
    """The own machine of a worker, as far as placing needs it."""

    @property
    def name(self) -> str:
        """Id of the worker."""
        ...

    @property
    def open(self) -> bool:
        """Whether it takes further work."""
        ...

    async def try_lease(self, job: StageJob) -> Lease | None:
        """Return what `run` needs for a job that is leased, or None when there is no room now.

        Raises:
            DispatchError: This machine can never run it, or cannot hand out devices now.
        """
        ...

    def try_slot(self) -> object | None:
        """Return what `run` needs for a job that is not leased, or None when there is no room now."""
        ...

    async def run(
        self,
        job: StageJob,
        lease: Lease | None,
        on_event: Callable[[ExecutionEvent], None],
        *,
        slot: object | None = None,
    ) -> ExecutionResult:
        """Run the attempt here and give the lease back, or the slot."""
        ...


class OriginalChoice(Protocol):
    """What `OriginalWorkers.choice` returns."""

    @property
    def fitting(self) -> Sequence[Any]:
        """Workers with hardware for it."""
        ...

    @property
    def ready(self) -> Sequence[Any]:
        """Those of them that are idle."""
        ...


class OriginalWorkers(Protocol):
    """Workers of the original protocol."""

    async def dispatch(self, job: StageJob, *, on_event: Callable[[ExecutionEvent], None]) -> ExecutionResult:
        """See `StageDispatcher`."""
        ...

    async def choice(self, resources: ResourceRequest) -> OriginalChoice:
        """Return which of them could take such a task."""
        ...


class PlacingDispatcher:
    """Chooses between the own machine, the pool, and workers of the original protocol.

    Args:
        here: The own machine, or None for a worker that runs root runs only.
        pool: Sends attempts to the pool.
        view: All workers.
        original: Workers of the original protocol, or None.
        mode: `auto` (ours first), `ours` or `original`: which workers may be used.
    """

    def __init__(
        self,
        *,
        here: HerePlace | None,
        pool: WorkPoolDispatcher,
        view: WorkersView,
        original: OriginalWorkers | None = None,
        mode: str = "auto",
    ) -> None:
        self._here, self._pool, self._view, self._mode = here, pool, view, mode
        self._original = original
        self._failed: dict[str, tuple[str, ...]] = {}

    async def dispatch(self, job: StageJob, *, on_event: Callable[[ExecutionEvent], None]) -> ExecutionResult:
        """See `StageDispatcher`."""
        task = job.request.task_id
        where = _Where(on_event)
        try:
            return await self._place(job, where)
        except ExecutionError as error:
            lost = error.worker if isinstance(error, WorkerLostError) else where.worker
            if error.retryable and lost and not isinstance(error, WorkerStoppedError):  # that may well be back by then
                self._failed[task] = tuple(dict.fromkeys((*self._failed.pop(task, ()), lost)))
                while len(self._failed) > _REMEMBERED:
                    del self._failed[next(iter(self._failed))]
            raise

    async def capacity(self, job: StageJob) -> int:
        """Return how many attempts like `job` workers have room for, by what they said last."""
        await self._view.look()  # not as some seconds ago: a task is divided once, and for good
        able = () if is_unwritten(job.executor) else self._view.live
        ours = sum(card.room(job.resources, lease=job.leased) for card in able)
        if self._original is None or self._mode == "ours":
            return ours
        try:
            theirs = len((await self._original.choice(job.resources)).ready)
        except DispatchError:  # no Redis now
            theirs = 0
        return theirs if self._mode == "original" else ours + theirs

    async def _place(self, job: StageJob, where: _Where) -> ExecutionResult:
        if self._mode == "original":
            if self._original is None:
                raise DispatchError("MLOC_DISPATCH=original needs Redis", hint="set MLOC_REDIS_URL")
            return await self._original.dispatch(job, on_event=where.take)
        if self._original is not None and self._mode == "auto" and is_unwritten(job.executor):
            return await self._original.dispatch(job, on_event=where.take)  # they may have code for it, ours have none
        avoid = tuple(dict.fromkeys((*job.avoid, *self._failed.get(job.request.task_id, ()))))
        prefer = preferred(job, self._view.live, avoid)
        if self._here is not None and self._here.open and self._suits(job, prefer, avoid):
            lease = await self._lease_here(self._here, job, where) if job.leased else None
            slot = None if job.leased else self._here.try_slot()
            if lease is not None or slot is not None:
                facts = {"worker": self._here.name, "protocol": "ours", "flow_run": None}
                where.take(ExecutionEvent("placed", facts, time.time()))
                return await self._here.run(job, lease, where.take, slot=slot)
        return await self._elsewhere(job, where, prefer, avoid)

    async def _lease_here(self, here: HerePlace, job: StageJob, where: _Where) -> Lease | None:
        """Return a lease of the own machine, or None: also when it cannot give any now, as others may run the job."""
        try:
            return await here.try_lease(job)
        except DispatchError as error:
            said = {"message": f"not run at {here.name}: {error.message}", "level": "warning"}
            where.take(ExecutionEvent("log", said, time.time()))
            return None

    def _suits(self, job: StageJob, prefer: Sequence[str], avoid: Sequence[str]) -> bool:
        """Return whether the own machine is as good a place as any."""
        here = self._here
        own = next((card for card in self._view.live if here is not None and card.id == here.name), None)
        if here is None or own is None or not own.could_run(job.resources):
            return False
        if own.id in avoid and any(c.could_run(job.resources) and c.id not in avoid for c in self._view.others):
            return False
        return not prefer or own.id in prefer

    async def _elsewhere(
        self, job: StageJob, where: _Where, prefer: Sequence[str], avoid: Sequence[str]
    ) -> ExecutionResult:
        if self._original is None or self._mode == "ours":
            return await self._pool.dispatch(job, on_event=where.take, prefer=prefer, avoid=avoid)
        while True:
            if await self._theirs(job):
                run, better = self._original.dispatch(job, on_event=where.take), self._room
            else:
                run = self._pool.dispatch(job, on_event=where.take, prefer=prefer, avoid=avoid)
                better = self._theirs
            result = await _unless(run, job, where, better)
            if result is not None:
                return result

    async def _theirs(self, job: StageJob) -> bool:
        """Return whether the job should go to workers of the original protocol: none of ours has room for it.

        Either one of theirs is free, or only theirs have the hardware for it.
        """
        assert self._original is not None
        if await self._room(job):
            return False
        try:
            choice = await self._original.choice(job.resources)
        except DispatchError:  # no Redis now: ours go on without it
            return False
        ours = any(card.could_run(job.resources) for card in self._view.live)
        return bool(choice.ready) or (not ours and bool(choice.fitting))

    async def _room(self, job: StageJob) -> bool:
        return any(card.has_room(job.resources, lease=job.leased) for card in self._view.live)


async def _unless(
    run: Awaitable[ExecutionResult], job: StageJob, where: _Where, better: Callable[[StageJob], Awaitable[bool]]
) -> ExecutionResult | None:
    """Return what `run` does; None when it has not been placed by the time that `better` finds another place."""
    running = asyncio.ensure_future(run)
    try:
        while True:
            await asyncio.wait({running}, timeout=_LOOK_SECONDS)
            if running.done():
                return await running
            # Asking takes a moment, in which it may have been placed or have ended.
            if where.worker is None and await better(job) and where.worker is None and not running.done():
                return None
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class _Where:
    """Passes events on and remembers where the attempt was placed."""

    def __init__(self, on_event: Callable[[ExecutionEvent], None]) -> None:
        self._on_event = on_event
        self.worker: str | None = None

    def take(self, event: ExecutionEvent) -> None:
        if event.kind == "placed":
            self.worker = event.data.get("worker")
        self._on_event(event)


def preferred(job: StageJob, cards: Sequence[WorkerCard], avoid: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the workers that should have `job`, () when all that have room are equally good.

    First those on which it did not fail, of these those that hold its engine warm, of these those whose card it fits
    most tightly.
    """
    roomy = [card for card in cards if card.has_room(job.resources, lease=job.leased)]
    if len(roomy) < 2:
        return ()
    engines = {engine_key(ref.path, job.engine_options) for ref in (job.executor, *job.executor.preferred)}
    ranks = {card.id: _rank(card, job, engines, avoid) for card in roomy}
    best = min(ranks.values())
    chosen = tuple(name for name, rank in ranks.items() if rank == best)
    return () if len(chosen) == len(roomy) else chosen


def _rank(card: WorkerCard, job: StageJob, engines: set[str], avoid: Sequence[str]) -> tuple[bool, bool, int]:
    if not job.leased:  # light work starts as fast anywhere
        return card.id in avoid, False, 0
    tight = 0
    if wanted_gpus(job.resources):
        sizes = sorted(gpu.memory_bytes or 0 for gpu in matching_gpus(job.resources, card.idle_gpus))
        tight = sizes[wanted_gpus(job.resources) - 1] if len(sizes) >= wanted_gpus(job.resources) else 0
    return card.id in avoid, not engines & set(card.warm), tight
