"""`PlacingDispatcher`: chooses where an attempt runs: on this machine if there is room now, else on the pool.

A stage that would fit here goes to the pool all the same if another worker suits it better (its model is warm there, it
has not failed there, or it leaves less memory of the GPU unused), and if others wait for the same devices.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from mloc_prefect.errors import DispatchError, ExecutionError
from mloc_prefect.execution.host_types import engine_key
from mloc_prefect.execution.protocol import ExecutionEvent
from mloc_prefect.flow.preflight import is_unwritten
from mloc_prefect.flow.worker_loss import WorkerLostError, WorkerStoppedError
from mloc_prefect.hardware.gpus import matching_gpus, wanted_gpus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mloc_prefect.cluster.cluster_view import ClusterView
    from mloc_prefect.cluster.worker_card import WorkerCard
    from mloc_prefect.execution.protocol import ExecutionResult
    from mloc_prefect.flow.dispatcher import LocalJob, StageJob
    from mloc_prefect.leases import Lease
    from mloc_prefect.mloc_workers.mloc_dispatcher import MlocDispatcher
    from mloc_prefect.worker.local_placement import LocalPlacement
    from mloc_prefect.worker.work_pool_dispatcher import WorkPoolDispatcher

_REMEMBERED = 1000


class PlacingDispatcher:
    """Chooses between this machine, the pool and MLOC workers.

    Args:
        local: This machine, or None for a worker that runs workflow runs only.
        pool: Sends attempts to the pool.
        view: All workers.
        original: Dispatches to MLOC workers, or None.
        mode: `auto` (ours first), `ours` or `original`: which workers may be used.
        recheck_seconds: How often a better place is searched for an attempt that waits.
    """

    def __init__(
        self,
        *,
        local: LocalPlacement | None,
        pool: WorkPoolDispatcher,
        view: ClusterView,
        original: MlocDispatcher | None = None,
        mode: str = "auto",
        recheck_seconds: float = 5.0,
    ) -> None:
        self._local, self._pool, self._view, self._mode = local, pool, view, mode
        self._original, self._recheck_seconds = original, recheck_seconds
        self._failed: dict[str, tuple[str, ...]] = {}

    async def dispatch(self, job: StageJob, *, on_event: Callable[[ExecutionEvent], None]) -> ExecutionResult:
        """See `StageDispatcher`."""
        task = job.request.task_id
        placed = _PlacedEvents(on_event)
        try:
            return await self._place_job(job, placed)
        except ExecutionError as error:
            lost = error.worker if isinstance(error, WorkerLostError) else placed.worker
            # A stopped worker may be back at the next attempt, so it is not avoided.
            if error.retryable and lost and not isinstance(error, WorkerStoppedError):
                self._failed[task] = tuple(dict.fromkeys((*self._failed.pop(task, ()), lost)))
                while len(self._failed) > _REMEMBERED:
                    del self._failed[next(iter(self._failed))]
            raise

    async def capacity(self, job: StageJob) -> int:
        """Return how many attempts like `job` the workers have room for, by their latest cards."""
        await self._view.refresh()  # a view of some seconds ago will not do: a task is divided only once
        able = () if is_unwritten(job.executor) else self._view.live
        ours = sum(card.room(job.resources, lease=job.leased) for card in able)
        if self._original is None or self._mode == "ours":
            return ours
        try:
            mloc_room = len((await self._original.choice(job.resources)).ready)
        except DispatchError:  # no Redis now
            mloc_room = 0
        return mloc_room if self._mode == "original" else ours + mloc_room

    async def _place_job(self, job: StageJob, placed: _PlacedEvents) -> ExecutionResult:
        if self._mode == "original":
            if self._original is None:
                raise DispatchError("MLOC_DISPATCH=original needs Redis", hint="set MLOC_REDIS_URL")
            return await self._original.dispatch(job, on_event=placed.pass_on)
        if self._original is not None and self._mode == "auto" and is_unwritten(job.executor):
            # MLOC workers may have code for it, ours have none.
            return await self._original.dispatch(job, on_event=placed.pass_on)
        avoid = tuple(dict.fromkeys((*job.avoid, *self._failed.get(job.request.task_id, ()))))
        prefer = preferred(job, self._view.live, avoid)
        if self._local is not None and self._local.open and self._suits(job, prefer, avoid):
            local = self._local.choose_engine(job)
            lease = await self._try_local_lease(self._local, local, placed) if job.leased else None
            slot = None if job.leased else self._local.try_slot()
            if lease is not None or slot is not None:
                facts = {"worker": self._local.name, "protocol": "ours", "flow_run": None}
                placed.pass_on(ExecutionEvent("placed", facts, time.time()))
                return await self._local.run_attempt(local, lease, placed.pass_on, slot=slot)
        return await self._dispatch_to_others(job, placed, prefer, avoid)

    async def _try_local_lease(self, machine: LocalPlacement, local: LocalJob, placed: _PlacedEvents) -> Lease | None:
        """Return a lease of this machine, or None; also if its lease book fails, as other workers may run the job."""
        try:
            return await machine.try_lease(local)
        except DispatchError as error:
            entry = {"message": f"not run at {machine.name}: {error.message}", "level": "warning"}
            placed.pass_on(ExecutionEvent("log", entry, time.time()))
            return None

    def _suits(self, job: StageJob, prefer: Sequence[str], avoid: Sequence[str]) -> bool:
        """Return whether no other worker suits the job better than this machine."""
        if self._local is None:
            return False
        own = next((card for card in self._view.live if card.id == self._local.name), None)
        if own is None or not own.could_run(job.resources):
            return False
        if own.id in avoid and any(c.could_run(job.resources) and c.id not in avoid for c in self._view.others):
            return False
        return not prefer or own.id in prefer

    async def _dispatch_to_others(
        self, job: StageJob, placed: _PlacedEvents, prefer: Sequence[str], avoid: Sequence[str]
    ) -> ExecutionResult:
        if self._original is None or self._mode == "ours":
            return await self._pool.dispatch(job, on_event=placed.pass_on, prefer=prefer, avoid=avoid)
        while True:
            if await self._suits_mloc_workers(job):
                run, better = self._original.dispatch(job, on_event=placed.pass_on), self._any_has_room
            else:
                run = self._pool.dispatch(job, on_event=placed.pass_on, prefer=prefer, avoid=avoid)
                better = self._suits_mloc_workers
            result = await _run_unless(run, job, placed, better, self._recheck_seconds)
            if result is not None:
                return result

    async def _suits_mloc_workers(self, job: StageJob) -> bool:
        """Return whether the job should go to MLOC workers: none of ours has room for it.

        And one of them is free, or only they have the hardware for it.
        """
        assert self._original is not None
        if await self._any_has_room(job):
            return False
        try:
            choice = await self._original.choice(job.resources)
        except DispatchError:  # no Redis now: our workers continue without it
            return False
        ours = any(card.could_run(job.resources) for card in self._view.live)
        return bool(choice.ready) or (not ours and bool(choice.fitting))

    async def _any_has_room(self, job: StageJob) -> bool:
        return any(card.has_room(job.resources, lease=job.leased) for card in self._view.live)


async def _run_unless(
    run: Awaitable[ExecutionResult],
    job: StageJob,
    placed: _PlacedEvents,
    better: Callable[[StageJob], Awaitable[bool]],
    recheck_seconds: float,
) -> ExecutionResult | None:
    """Return the result of `run`; None if it has no worker yet when `better` finds another place."""
    running = asyncio.ensure_future(run)
    try:
        while True:
            await asyncio.wait({running}, timeout=recheck_seconds)
            if running.done():
                return await running
            # `better` takes a moment, in which the run may have got a worker or ended.
            if placed.worker is None and await better(job) and placed.worker is None and not running.done():
                return None
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class _PlacedEvents:
    """Passes events on and remembers on which worker the attempt is."""

    def __init__(self, on_event: Callable[[ExecutionEvent], None]) -> None:
        self._on_event = on_event
        self.worker: str | None = None

    def pass_on(self, event: ExecutionEvent) -> None:
        if event.kind == "placed":
            self.worker = event.data.get("worker")
        self._on_event(event)


def preferred(job: StageJob, cards: Sequence[WorkerCard], avoid: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the workers that should take `job`; () when all that have room are equally good.

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
