"""What a worker takes of what is scheduled: root runs always, others while it has slots, stages under a lease.

What it does not take stays scheduled, for other workers and for later. It asks only for queues that it could serve, so
that thousands of runs that fit nowhere here cost nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from mloc_prefect.errors import MlocError
from mloc_prefect.orchestrate.deployments import COORDINATOR_QUEUE
from mloc_prefect.orchestrate.jobfile import read_job
from mloc_prefect.worker.inventory import misfit
from mloc_prefect.worker.lines import Lines
from mloc_prefect.worker.queues import Queue, leave_room, read_queues
from mloc_prefect.worker.scheduled import ScheduledRuns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import WorkerFlowRunResponse

    from mloc_prefect.worker.here import Here
    from mloc_prefect.worker.leases import Lease
    from mloc_prefect.worker.queues import RequirementClass
    from mloc_prefect.worker.view import WorkersView

logger = logging.getLogger("prefect.mloc.worker")

PREFER_SECONDS = 2.0
"""How long a run is left to the workers that it prefers."""

AVOID_SECONDS = 10.0
"""How long a run is left to workers on which it did not fail yet, when there are such."""

_LOOKED_AT = 50  # runs of one queue that are looked at in one poll
_REMEMBERED = 5000
_EXPECTED_SECONDS = 3.0


@dataclass(slots=True)
class Claim:
    """A run that this worker takes.

    Attributes:
        entry: The run, as the API gave it.
        lease: What it runs under, or None.
        slot: Whether it counts against the worker's limit.
    """

    entry: WorkerFlowRunResponse
    lease: Lease | None = None
    slot: bool = True


@dataclass
class _Poll:
    """What one poll has found out so far.

    Attributes:
        claims: What to run.
        full: Queues and engines for which there is no room.
        again: Seconds after which there may be more to run, or None.
        shut: The lease book cannot be used now.
    """

    claims: list[Claim] = field(default_factory=list)
    full: set[tuple[str, str]] = field(default_factory=set)
    again: float | None = None
    shut: bool = False


class Claims:
    """Chooses runs; the worker hands them to Prefect.

    Args:
        pool: Name of the pool.
        limit: The pool's limit of runs, or None.
        only: Names of the queues to serve; empty for all.
        here: The own machine, or None for a worker that runs root runs only.
        view: All workers.
        wake: Polls again, after so many seconds.
        user_lease: Leases what a run of somebody else's flow asks for; returns whether it may run, and the lease.
        ahead: Seconds before they are due in which runs are taken; stages are taken when they are due.
    """

    def __init__(
        self,
        *,
        pool: str,
        limit: Callable[[], int | None],
        only: Collection[str],
        here: Here | None,
        view: WorkersView,
        wake: Callable[[float], None],
        user_lease: Callable[[FlowRun], Awaitable[tuple[bool, Lease | None]]],
        ahead: float,
    ) -> None:
        self._pool, self._only, self._here, self._view = pool, set(only), here, view
        self._limit = limit
        self._wake, self._user_lease, self._ahead = wake, user_lease, ahead
        self._scheduled = ScheduledRuns(pool)
        self._queues: list[Queue] = []
        self._quiet: set[str] = set()
        self._expected: dict[str, float] = {}
        self._first_seen: dict[UUID, float] = {}
        self._lines = Lines(here.place.dispatcher if here else None, lambda: wake(0.0))

    def serves(self, queue_id: str) -> bool | None:
        """Return whether a run that an event tells of may be for us, or None when its queue is not known yet."""
        self._expected[queue_id] = time.monotonic()
        known = next((q for q in self._queues if q.id == queue_id), None)
        return None if known is None else self._could(known)

    async def refresh(self, client: PrefectClient) -> None:
        """Read the queues of the pool anew.

        Raises:
            httpx.HTTPError: No answer.
        """
        self._queues = await read_queues(client, self._pool)
        roots = next((queue for queue in self._queues if queue.name == COORDINATOR_QUEUE), None)
        if roots is not None:
            await leave_room(client, self._pool, roots, self._limit())

    async def choose(self, client: PrefectClient, busy: Collection[UUID], *, settled: bool = True) -> list[Claim]:
        """Return what to run now; leases are held for it already, and must be given back for what does not run.

        Args:
            client: Open client.
            busy: Runs that this worker has already.
            settled: Whether this is an ordinary poll: the list of queues is read anew then, and each queue looked into.
                Else those are left out that were empty and of which no event has told since.

        Raises:
            httpx.HTTPError: No answer.
        """
        if settled or not self._queues:
            await self.refresh(client)
            self._quiet.clear()
        names = [q.name for q in self._queues if q.name == COORDINATOR_QUEUE and self._asked(q)]
        roots = asyncio.ensure_future(self._scheduled.read(client, names, ahead=self._ahead))
        poll = _Poll()
        try:
            if self._here is not None and self._here.open and self._here.slots.free:
                await self._choose_work(client, busy, poll, self._here)
            else:
                await self._lines.leave()
            coordinators = [Claim(e, slot=False) for e in await roots if e.flow_run.id not in busy]
        except BaseException:
            roots.cancel()
            await self.give_back(poll.claims)
            raise
        if poll.again is not None:
            self._wake(poll.again)
        return [*coordinators, *poll.claims]

    async def give_back(self, claims: Sequence[Claim]) -> None:
        """Give up claims that do not run."""
        for claim in claims:
            if claim.lease is not None and self._here is not None:
                await self._here.place.leases.release(claim.lease)

    async def close(self) -> None:
        """Leave all lines."""
        await self._lines.leave()

    async def _choose_work(self, client: PrefectClient, busy: Collection[UUID], poll: _Poll, here: Here) -> None:
        await here.place.leases.look_again()
        queues = [q for q in self._queues if q.name != COORDINATOR_QUEUE and self._asked(q) and self._could(q)]
        queues = [q for q in queues if q.name not in self._quiet or self._told_of(q)]
        found = await asyncio.gather(*(self._read(client, q) for q in queues))
        self._quiet |= {q.name for q, runs in zip(queues, found, strict=True) if not runs}
        self._quiet -= {q.name for q, runs in zip(queues, found, strict=True) if runs}
        await self._lines.only({q.name for q, runs in zip(queues, found, strict=True) if runs})
        slots = here.slots.free
        for queue, entries in zip(queues, found, strict=True):
            fresh = [e for e in entries if e.flow_run.id not in busy]
            for entry in fresh:
                if len(poll.claims) >= slots:
                    return
                if await self._claim(queue, entry, poll):
                    break

    def _told_of(self, queue: Queue) -> bool:
        """Return whether an event has just told of a run in a queue; it comes before the run can be read."""
        return time.monotonic() - self._expected.get(queue.id, -_EXPECTED_SECONDS) < _EXPECTED_SECONDS

    async def _read(self, client: PrefectClient, queue: Queue) -> list[WorkerFlowRunResponse]:
        ahead = 0.0 if queue.needs else self._ahead
        return await self._scheduled.read(client, [queue.name], ahead=ahead, limit=_LOOKED_AT)

    async def _claim(self, queue: Queue, entry: WorkerFlowRunResponse, poll: _Poll) -> bool:
        """Claim a run if there is room for it; returns whether there is none for the rest of its queue either."""
        run = entry.flow_run
        if queue.needs is None:
            may, lease = await self._user_lease(run)
            if may:
                poll.claims.append(Claim(entry, lease))
            return False
        if (left := self._left_to_others(run, queue.needs)) > 0:
            poll.again = min(left, poll.again or left)
            return False
        engine = (queue.name, str(run.parameters.get("engine")))
        if engine in poll.full:
            return False
        if queue.needs.lease and poll.shut:
            return True
        try:
            job = await asyncio.to_thread(read_job, Path(str(run.parameters.get("attempt_dir"))))
        except MlocError as error:
            logger.warning("run %s is not for this worker: %s", run.name, error)
            return False
        lease = None
        waited = time.monotonic() - self._first_seen[run.id]
        try:
            if queue.needs.lease and (lease := await self._lines.turn(queue.name, job, waited=waited)) is None:
                poll.full.add(engine)
                return not (job.executor.shared or job.executor.preferred)
        except MlocError as error:
            logger.warning("no device for run %s now: %s", run.name, error.message)
            poll.shut = self._could(queue)  # each further one might wait for the lock of the book, as long as this one
            return True
        poll.claims.append(Claim(entry, lease))
        return False

    def _left_to_others(self, run: FlowRun, needs: RequirementClass) -> float:
        """Return for how many seconds a run is still left to other workers."""
        seen = self._first_seen.setdefault(run.id, time.monotonic())
        while len(self._first_seen) > _REMEMBERED:
            del self._first_seen[next(iter(self._first_seen))]
        prefer, avoid = (run.parameters.get(name) or [] for name in ("prefer", "avoid"))
        others = {card.id for card in self._view.others if card.could_run(needs.request)}
        own = self._here.name if self._here else ""
        patience = 0.0
        if prefer and own not in prefer and others & set(prefer):
            patience = PREFER_SECONDS
        if own in avoid and others - set(avoid):
            patience = AVOID_SECONDS
        return patience - (time.monotonic() - seen)

    def _asked(self, queue: Queue) -> bool:
        return not self._only or queue.name in self._only

    def _could(self, queue: Queue) -> bool:
        if queue.needs is None or self._here is None:
            return queue.needs is None
        return misfit(queue.needs.request, self._here.place.leases.inventory) is None
