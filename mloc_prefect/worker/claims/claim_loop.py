"""Which scheduled runs a worker takes: workflow runs always, others while it has slots, stages under a lease.

What it does not take stays scheduled, for other workers and for later. It polls only queues that it could serve, so
thousands of runs that do not fit this machine cost nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from mloc_prefect.cluster.requirement_queues import RequirementQueue, leave_room, read_queues
from mloc_prefect.errors import MlocError
from mloc_prefect.flow.attempt_files import read_job
from mloc_prefect.hardware.inventory import misfit
from mloc_prefect.prefect_ext.run_facts import COORDINATOR_QUEUE
from mloc_prefect.worker.claims.lease_waiters import LeaseWaiters
from mloc_prefect.worker.claims.scheduled_runs import ScheduledRuns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import WorkerFlowRunResponse

    from mloc_prefect.cluster.cluster_view import ClusterView
    from mloc_prefect.cluster.requirement_queues import RequirementClass
    from mloc_prefect.leases import Lease
    from mloc_prefect.worker.local_placement import LocalPlacement

logger = logging.getLogger("prefect.mloc.worker")

_LOOKED_AT = 50  # runs of one queue that are looked at in one poll
_ROOTS_AT_ONCE = 200  # workflow runs that are taken in one poll
_REMEMBERED = 5000
_EXPECTED_SECONDS = 3.0
_FULL_PAGE_SECONDS = 1.0  # until the next look, where all of a full page are busy, resting or refused


@dataclass(slots=True)
class RunClaim:
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
    """State of one poll.

    Attributes:
        claims: Runs to start.
        full: Queues and engines for which there is no room.
        again: Seconds after which there may be more to run, or None.
        shut: The lease book cannot be used now.
    """

    claims: list[RunClaim] = field(default_factory=list)
    full: set[tuple[str, str]] = field(default_factory=set)
    again: float | None = None
    shut: bool = False


class ClaimLoop:
    """Chooses runs; the worker hands them to Prefect.

    Args:
        pool: Name of the pool.
        limit: The pool's limit of runs, or None.
        only: Names of the queues to serve; empty for all.
        here: The worker's own machine, or None for a worker that runs workflow runs only.
        view: All workers.
        wake: Polls again, after so many seconds.
        user_lease: Leases what a run of a user's own flow asks for; returns whether it may run, and the lease.
        ahead: Seconds before they are due in which runs are taken; stages are taken when they are due.
        prefer_seconds: How long a run is left to the workers that it prefers.
        avoid_seconds: How long a run is left to workers on which it did not fail, if there are any.

    Attributes:
        leaves_runs: Whether the latest poll may have left runs that could be taken once there is room.
    """

    def __init__(
        self,
        *,
        pool: str,
        limit: Callable[[], int | None],
        only: Collection[str],
        here: LocalPlacement | None,
        view: ClusterView,
        wake: Callable[[float], None],
        user_lease: Callable[[FlowRun], Awaitable[tuple[bool, Lease | None]]],
        ahead: float,
        prefer_seconds: float = 2.0,
        avoid_seconds: float = 10.0,
    ) -> None:
        self._pool, self._only, self._here, self._view = pool, set(only), here, view
        self._limit = limit
        self._prefer_seconds, self._avoid_seconds = prefer_seconds, avoid_seconds
        self._wake, self._user_lease, self._ahead = wake, user_lease, ahead
        self._scheduled = ScheduledRuns(pool)
        self._queues: list[RequirementQueue] = []
        self._quiet: set[str] = set()
        self._expected: dict[str, float] = {}
        self._first_seen: dict[UUID, float] = {}
        self._full_page: set[UUID] = set()
        self._polls_at = 0.0
        self.leaves_runs = True
        self._waiters = LeaseWaiters(here.machine.dispatcher if here else None, lambda: wake(0.0))

    def serves(self, queue_id: str) -> bool | None:
        """Return whether a run in a queue, named by an event, may be for us; None when the queue is not known yet."""
        self._expected[queue_id] = time.monotonic()
        known = next((q for q in self._queues if q.id == queue_id), None)
        return None if known is None else self._could(known)

    async def refresh(self, client: PrefectClient) -> None:
        """Read the queues of the pool again.

        Raises:
            httpx.HTTPError: No answer.
        """
        self._queues = await read_queues(client, self._pool)
        known, now = {queue.id for queue in self._queues}, time.monotonic()
        self._expected = {q: at for q, at in self._expected.items() if q in known or now - at < _EXPECTED_SECONDS}
        roots = next((queue for queue in self._queues if queue.name == COORDINATOR_QUEUE), None)
        if roots is not None:
            await leave_room(client, self._pool, roots, self._limit())

    async def choose(self, client: PrefectClient, busy: Collection[UUID], *, settled: bool = True) -> list[RunClaim]:
        """Return the runs to start now; their leases are held, and must be given back for runs that do not start.

        Args:
            client: Open client.
            busy: Runs that this worker has already.
            settled: Whether this is an ordinary poll, which reads the list of queues again and polls each of them.
                Else queues are skipped that were empty and for which no event has come since.

        Raises:
            httpx.HTTPError: No answer.
        """
        if settled or not self._queues:
            await self.refresh(client)
            self._quiet.clear()
        names = [q.name for q in self._queues if q.name == COORDINATOR_QUEUE and self._asked(q)]
        roots = asyncio.ensure_future(
            self._scheduled.read(client, names, ahead=self._ahead, limit=_ROOTS_AT_ONCE),
        )
        poll = _Poll()
        try:
            self.leaves_runs = True
            if self._here is not None and self._here.open and self._here.slots.free:
                self.leaves_runs = await self._choose_work(client, busy, poll, self._here)
            else:
                await self._waiters.leave_all()
            found = await roots
            coordinators = [RunClaim(e, slot=False) for e in found if e.flow_run.id not in busy]
            self._look_beyond(found, coordinators, poll)
        except BaseException:
            roots.cancel()
            await self.give_back(poll.claims)
            raise
        if poll.again is not None:
            self._poll_after(poll.again)
        return [*coordinators, *poll.claims]

    def _look_beyond(
        self, found: Sequence[WorkerFlowRunResponse], coordinators: Sequence[RunClaim], poll: _Poll
    ) -> None:
        """Ask for another poll if there may be more workflow runs: at once if this page has new ones to claim."""
        if len(found) < _ROOTS_AT_ONCE:
            self._full_page.clear()
            return
        offered, self._full_page = self._full_page, {claim.entry.flow_run.id for claim in coordinators}
        if self._full_page - offered:
            poll.again = 0.0
        else:
            poll.again = min(poll.again or _FULL_PAGE_SECONDS, _FULL_PAGE_SECONDS)

    def _poll_after(self, seconds: float) -> None:
        """Poll again, unless an earlier poll is due: it decides anew, and wakes would add up with each poll."""
        now = time.monotonic()
        if seconds and now < self._polls_at <= now + seconds:
            return
        self._polls_at = now + seconds
        self._wake(seconds)

    async def give_back(self, claims: Sequence[RunClaim]) -> None:
        """Give back the leases of claims that do not run."""
        for claim in claims:
            if claim.lease is not None and self._here is not None:
                await self._here.machine.leases.release(claim.lease)

    async def close(self) -> None:
        """Stop waiting at the lease book."""
        await self._waiters.leave_all()

    async def _choose_work(
        self, client: PrefectClient, busy: Collection[UUID], poll: _Poll, here: LocalPlacement
    ) -> bool:
        """Claim what fits; returns whether runs were left."""
        await here.machine.leases.refresh_inventory()
        queues = [q for q in self._queues if q.name != COORDINATOR_QUEUE and self._asked(q) and self._could(q)]
        queues = [q for q in queues if q.name not in self._quiet or self._expects_run(q)]
        found = await asyncio.gather(*(self._read(client, q) for q in queues))
        self._quiet |= {q.name for q, runs in zip(queues, found, strict=True) if not runs}
        self._quiet -= {q.name for q, runs in zip(queues, found, strict=True) if runs}
        await self._waiters.begin_poll({q.name for q, runs in zip(queues, found, strict=True) if runs})
        slots = here.slots.free
        fresh = [[e for e in runs if e.flow_run.id not in busy] for runs in found]
        for queue, entries in zip(queues, fresh, strict=True):
            for entry in entries:
                if len(poll.claims) >= slots:
                    return True
                if await self._claim(queue, entry, poll):
                    break
        hidden = self._is_limited or any(len(runs) == _LOOKED_AT for runs in found)
        return hidden or len(poll.claims) < sum(map(len, fresh))

    @property
    def _is_limited(self) -> bool:
        """Whether the server may hold runs back until others have ended."""
        return self._limit() is not None or any(queue.limit is not None for queue in self._queues)

    def _expects_run(self, queue: RequirementQueue) -> bool:
        """Return whether an event has just announced a run in a queue; it comes before the run can be read."""
        return time.monotonic() - self._expected.get(queue.id, -_EXPECTED_SECONDS) < _EXPECTED_SECONDS

    async def _read(self, client: PrefectClient, queue: RequirementQueue) -> list[WorkerFlowRunResponse]:
        ahead = 0.0 if queue.needs else self._ahead
        return await self._scheduled.read(client, [queue.name], ahead=ahead, limit=_LOOKED_AT)

    async def _claim(self, queue: RequirementQueue, entry: WorkerFlowRunResponse, poll: _Poll) -> bool:
        """Claim a run if there is room for it; returns whether there is none for the rest of its queue either."""
        run = entry.flow_run
        if queue.needs is None:
            may, lease = await self._user_lease(run)
            if may:
                poll.claims.append(RunClaim(entry, lease))
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
            if (
                queue.needs.lease
                and (lease := await self._waiters.lease_or_wait(queue.name, job, waited=waited)) is None
            ):
                poll.full.add(engine)
                return not (job.executor.shared or job.executor.preferred)
        except MlocError as error:
            logger.warning("no device for run %s now: %s", run.name, error.message)
            poll.shut = self._could(queue)  # each further run might wait for the lock of the book as long as this one
            return True
        poll.claims.append(RunClaim(entry, lease))
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
            patience = self._prefer_seconds
        if own in avoid and others - set(avoid):
            patience = self._avoid_seconds
        return patience - (time.monotonic() - seen)

    def _asked(self, queue: RequirementQueue) -> bool:
        return not self._only or queue.name in self._only

    def _could(self, queue: RequirementQueue) -> bool:
        if queue.needs is None or self._here is None:
            return queue.needs is None
        return misfit(queue.needs.request, self._here.machine.leases.inventory) is None
