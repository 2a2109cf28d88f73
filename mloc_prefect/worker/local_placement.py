"""Runs stages on a worker's own machine: its slots, its leases, and the end of cancelled executors."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio

from mloc_prefect.execution.protocol import ExecutionEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.execution.protocol import ExecutionResult
    from mloc_prefect.flow.dispatcher import LocalJob, StageJob
    from mloc_prefect.leases import Lease
    from mloc_prefect.worker.machine import Machine

logger = logging.getLogger("prefect.mloc.worker")

_NO_LIMIT = 10_000
_LEAVE_SECONDS = 2.5  # of the five seconds after which a cancelled executor must have ended


class StageSlots:
    """The worker's limit of runs (`--limit`); stages that run in its process count, workflow runs do not.

    Args:
        limiter: Returns Prefect's limiter, or None when there is no limit.
    """

    def __init__(self, limiter: Callable[[], anyio.CapacityLimiter | None]) -> None:
        self._limiter = limiter

    @property
    def free(self) -> int:
        """How many further runs may begin."""
        limiter = self._limiter()
        return _NO_LIMIT if limiter is None else int(limiter.available_tokens)

    def take(self, holder: object) -> bool:
        """Take a slot if there is one."""
        limiter = self._limiter()
        try:
            if limiter is not None:
                limiter.acquire_on_behalf_of_nowait(holder)
        except anyio.WouldBlock:
            return False
        return True

    def release(self, holder: object) -> None:
        """Release a slot."""
        limiter = self._limiter()
        if limiter is not None:
            limiter.release_on_behalf_of(holder)


class LocalPlacement:
    """A worker's own machine, for `PlacingDispatcher` and for the runs that the worker claims.

    Args:
        name: Id of the worker.
        machine: The machine.
        slots: The worker's limit.
        is_open: Whether it takes further work.
        freed: Called when an attempt ended and there may be room.
    """

    def __init__(
        self, name: str, machine: Machine, slots: StageSlots, is_open: Callable[[], bool], freed: Callable[[], None]
    ) -> None:
        self.name = name
        self.machine = machine
        self.slots = slots
        self._is_open = is_open
        self._freed = freed
        self._in_place: dict[str, object] = {}

    @property
    def open(self) -> bool:
        """Whether it takes further work."""
        return self._is_open()

    def choose_engine(self, job: StageJob) -> LocalJob:
        """Return `job` with the engine that runs it here."""
        return self.machine.dispatcher.choose_engine(job)

    async def try_lease(self, local: LocalJob) -> Lease | None:
        """Return what `run_attempt` needs for a job that is leased, with a slot, or None when there is no room now."""
        token = uuid4()
        if not self.slots.take(token):
            return None
        try:
            lease = await self.machine.dispatcher.try_lease(local)
        except BaseException:
            self.slots.release(token)
            raise
        if lease is None:
            self.slots.release(token)
        else:
            self._in_place[lease.id] = token
        return lease

    def try_slot(self) -> object | None:
        """Return a slot for `run_attempt` with a job that is not leased, or None when there is none now."""
        token = uuid4()
        return token if self.slots.take(token) else None

    async def run_attempt(
        self,
        local: LocalJob,
        lease: Lease | None,
        on_event: Callable[[ExecutionEvent], None],
        *,
        slot: object | None = None,
    ) -> ExecutionResult:
        """Run an attempt here, then release its lease and its slot.

        When the attempt is cancelled, its executor ends and frees its memory on the device.

        Args:
            local: The attempt.
            lease: Its lease, of `try_lease` or of the claim of its run; None for light work.
            on_event: Called with each event.
            slot: Of `try_slot`; None for a run of the pool, which has Prefect's.
        """
        try:
            return await self.machine.dispatcher.dispatch_leased(local, lease, on_event=on_event)
        except asyncio.CancelledError:
            if lease is not None:
                await asyncio.shield(asyncio.create_task(self._clear(local, lease)))
            raise
        finally:
            token = self._in_place.pop(lease.id, None) if lease is not None else slot
            if token is not None:
                self.slots.release(token)
            self._freed()

    async def _clear(self, local: LocalJob, lease: Lease) -> None:
        """End the executor of a cancelled job unless it has other tasks; kill it when it does not end in time."""
        key = self.machine.dispatcher.host_of(local, lease).key
        try:
            async with asyncio.timeout(_LEAVE_SECONDS):
                await self.machine.hosts.leave(key)
        except TimeoutError:
            logger.warning("executor %s of %s did not end in time, killing it", key, local.job.title)
            await self.machine.hosts.discard(key)


class LeasedPlacement:
    """Runs the attempt of a `run-stage` run under the lease that the run was claimed with."""

    def __init__(self, here: LocalPlacement, lease: Lease | None) -> None:
        self._here, self._lease = here, lease

    async def dispatch(self, job: StageJob, *, on_event: Callable[[ExecutionEvent], None]) -> ExecutionResult:
        """See `StageDispatcher`."""
        facts = {"worker": self._here.name, "protocol": "ours", "flow_run": None}
        on_event(ExecutionEvent("placed", facts, time.time()))
        lease, local = self._lease, self._here.choose_engine(job)
        if lease is None and job.leased:  # started by hand, in a queue without a class
            lease = await self._here.machine.dispatcher.wait_lease(local)
        return await self._here.run_attempt(local, lease, on_event)
