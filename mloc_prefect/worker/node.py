"""Everything of a worker beside Prefect's own polling and process runs: place, claims, warm runs, heartbeat, reaper."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import get_client

from mloc_prefect.execution.protocol import ExecutionEvent
from mloc_prefect.orchestrate.deployments import RUN_WORKFLOW
from mloc_prefect.orchestrate.follow import RunFollower
from mloc_prefect.orchestrate.placing import PlacingDispatcher
from mloc_prefect.orchestrate.pooled import WorkPoolDispatcher
from mloc_prefect.worker.cancels import CancelWatch
from mloc_prefect.worker.card import WorkerCard
from mloc_prefect.worker.claims import Claims
from mloc_prefect.worker.directory import VariableDirectory
from mloc_prefect.worker.doubts import REST_SECONDS, Doubts
from mloc_prefect.worker.engine import WarmRuns
from mloc_prefect.worker.heartbeat import Heartbeat
from mloc_prefect.worker.here import Here, Slots
from mloc_prefect.worker.identity import Process
from mloc_prefect.worker.orphans import Orphans
from mloc_prefect.worker.place import local_place
from mloc_prefect.worker.reaper import Reaper, reap_for_ever
from mloc_prefect.worker.recovery import Recovery
from mloc_prefect.worker.roster import show_for_ever
from mloc_prefect.worker.succession import succeed
from mloc_prefect.worker.taken import Taken
from mloc_prefect.worker.userruns import UserRuns
from mloc_prefect.worker.view import Reasons, WorkersView
from mloc_prefect.worker.wake import Waker, hearing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine
    from types import TracebackType
    from typing import Self
    from uuid import UUID

    from anyio import CapacityLimiter
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, WorkPool
    from prefect.flows import Flow

    from mloc_prefect.execution.protocol import ExecutionResult
    from mloc_prefect.orchestrate.dispatch import StageDispatcher, StageJob
    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.worker.claims import Claim
    from mloc_prefect.worker.leases import Lease
    from mloc_prefect.worker.place import Place

logger = logging.getLogger("prefect.mloc.worker")

_CARD_SECONDS = 1.0
_CONNECTED_SECONDS = 1.0  # the server begins to send a moment after it has accepted us
_FREED_SECONDS = 0.05  # Prefect frees the slot of a run a moment after the run


@dataclass(frozen=True, slots=True, kw_only=True)
class Bindings:
    """What a node needs of Prefect's worker.

    Attributes:
        poll: Fetches what is scheduled and starts it; returns the ids of the runs.
        limiter: The limit of runs, or None.
        work_pool: The pool, or None while it is not known.
        ahead: Seconds before they are due in which runs are taken.
        stop: Ends the worker as a signal does.
    """

    poll: Callable[[], Awaitable[Collection[UUID]]]
    limiter: Callable[[], CapacityLimiter | None]
    work_pool: Callable[[], WorkPool | None]
    ahead: float
    stop: Callable[[], None]


class Node:
    """One worker; an async context manager, bound to one event loop.

    Args:
        settings: Settings in force.
        name: Its id.
        pool: Name of its pool.
        queues: Names of the queues that it serves; empty for all.
        coordinator_only: It runs root runs only and has no hardware to offer.
        bindings: Prefect's worker.

    Attributes:
        draining: It takes no further runs.
        taken: What it has taken and not begun.
    """

    taken: Taken

    def __init__(
        self,
        settings: MlocSettings,
        *,
        name: str,
        pool: str,
        queues: Collection[str],
        coordinator_only: bool,
        bindings: Bindings,
    ) -> None:
        self._settings, self._name, self._pool, self._queues = settings, name, pool, queues
        self._coordinator_only = coordinator_only
        self._bindings = bindings
        self._incarnation = secrets.token_hex(4)
        self._stack = AsyncExitStack()
        self._leases: dict[UUID, Lease] = {}
        self._doubts = Doubts(self._put_back)
        self._background: set[asyncio.Task[Any]] = set()
        self._place: Place | None = None
        self._here: Here | None = None
        self._switched_off: Callable[[], bool] = lambda: False
        self.draining = False

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        """End what runs, hand it to others, and leave."""
        self.draining = True
        await self._stack.aclose()

    @property
    def incarnation(self) -> str:
        """Tells this process of the worker from others that had its id, and from itself before it was given up."""
        return self._incarnation

    @property
    def dispatcher(self) -> StageDispatcher:
        """Where root runs dispatch their stages to."""
        return self._dispatcher

    async def claim(self, client: PrefectClient, here: Collection[UUID], *, settled: bool) -> list[Claim]:
        """Return what to run now, see `Claims.choose`; the leases are kept for `run`, or until `drop`.

        Args:
            client: Open client.
            here: Runs that the worker is taking or running.
            settled: See `Claims.choose`.
        """
        if not self._open_to_work:
            return []
        await self._doubts.settle(here)
        busy = {*here, *self._doubts.resting}
        settled, self._waker.new_queue = settled or self._waker.new_queue, False  # not after: more may come meanwhile
        claims = await self._claims.choose(client, busy, settled=settled)
        self._leases |= {claim.entry.flow_run.id: claim.lease for claim in claims if claim.lease is not None}
        return claims

    @property
    def _open_to_work(self) -> bool:
        """Whether it takes further runs: it does not end, and nobody has switched it off."""
        return not self.draining and not self._switched_off()

    def doubt(self, flow_run_id: UUID) -> None:
        """Note that nobody knows whether this worker has taken a run."""
        self._doubts.add(flow_run_id)
        self._waker.wake(REST_SECONDS)

    def lease_of(self, flow_run_id: UUID) -> Lease | None:
        """Return the lease that a run was claimed with."""
        return self._leases.get(flow_run_id)

    async def drop(self, flow_run_id: UUID) -> None:
        """Give back the lease of a run that has ended, or does not run here; nothing happens when there is none."""
        self.taken.forget(flow_run_id)
        lease = self._leases.pop(flow_run_id, None)
        if lease is not None and self._place is not None:
            await self._place.leases.release(lease)
            self.freed()

    async def run(self, flow: Flow[..., Any], flow_run: FlowRun) -> int:
        """Run one of our flows to its end; returns 0, or 1 when it broke down without a report."""
        if flow.name == RUN_WORKFLOW.flow or self._here is None:
            return await self._warm.run(flow, flow_run, self._dispatcher)
        return await self._warm.run(flow, flow_run, _Leased(self._here, self._leases.get(flow_run.id)))

    def freed(self) -> None:
        """Look for further runs in a moment: something ended."""
        if not self.draining:
            self._waker.wake(_FREED_SECONDS)

    def card(self) -> WorkerCard:
        """Return what this worker tells the others now."""
        limiter = self._bindings.limiter()
        card = WorkerCard(
            id=self._name,
            incarnation=self._incarnation,
            pool=self._pool,
            role="coordinator" if self._coordinator_only else "worker",
            process=Process.own(),
            slots=None if limiter is None else int(limiter.available_tokens),
            draining=not self._open_to_work,
            runs=tuple(str(run_id) for run_id in self._warm.ids),
            heartbeat=self._settings.heartbeat_seconds,
        )
        return card if self._place is None else self._place.fill_in(card)

    async def _open(self) -> None:
        enter = self._stack.enter_async_context
        self._client = await enter(get_client())
        self._recovery = Recovery(self._client, self._settings.max_retries)
        self._cancels, follower = CancelWatch(self._client), RunFollower(self._client)
        self._warm = WarmRuns(self._client, self._cancels)
        if not self._coordinator_only:
            self._place = await enter(local_place(self._settings))
            slots = Slots(self._bindings.limiter)
            self._here = Here(self._name, self._place, slots, lambda: self._open_to_work, self.freed)
        self._view = WorkersView(VariableDirectory(self._client), self._settings.heartbeat_ttl, own=self.card)
        self._dispatcher = self._make_dispatcher(follower)
        self._waker = Waker(self._bindings.poll, self._pool_id, self._serves)
        self._claims = self._make_claims()
        await succeed(self._view, self._name, Reaper.of(self._settings, self._client, self._view, self._name))
        self._heartbeat = heartbeat = Heartbeat(
            self._settings, self.card(), self._lost_in_thread, self._heartless_in_thread
        )
        self._switched_off = lambda: heartbeat.switched_off
        self.taken = Taken(self._name, self._client, heartbeat.sure_of)
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._heartbeat.start)
        self._stack.push_async_callback(self._heartbeat.stop)
        self._stack.push_async_callback(self._hand_back)
        await enter(self._warm)
        self._stack.push_async_callback(self._claims.close)
        await enter(follower.running())
        await enter(self._cancels.running())
        self._stack.push_async_callback(self._end_background)
        self._start(reap_for_ever(self._settings, self._client, self._view, self._name))
        self._start(Orphans(self._client, self._pool, self._view).watch())
        self._start(self._keep_card())
        self._start(show_for_ever(self._client, self._view, self._name, self._settings.heartbeat_seconds))
        listeners = [self._waker.notice, follower.notice, self._cancels.notice]
        await enter(hearing(listeners, self._connected))
        await enter(self._waker.running())

    def _make_dispatcher(self, follower: RunFollower) -> StageDispatcher:
        pool = WorkPoolDispatcher(self._client, self._pool, follower, Reasons(self._view).why)
        return PlacingDispatcher(
            here=self._here, pool=pool, view=self._view, original=self._original(), mode=self._settings.dispatch
        )

    def _original(self) -> Any:
        """Return the way to workers of the original protocol, which are known through Redis only."""
        url = self._settings.redis_url
        if url is None or self._settings.dispatch == "ours":
            return None
        from mloc_prefect.bridge.original import OriginalDispatcher
        from mloc_prefect.bridge.stores import open_stores

        stores = open_stores(url)
        self._stack.push_async_callback(stores.close)
        original = OriginalDispatcher.of(stores, self._settings)
        self._stack.push_async_callback(original.close)
        return original

    def _make_claims(self) -> Claims:
        user = UserRuns(self._place) if self._place is not None else None

        async def user_lease(run: FlowRun) -> tuple[bool, Lease | None]:
            if user is None:
                return False, None
            return await user.lease(self._client, self._bindings.work_pool(), run)

        return Claims(
            pool=self._pool,
            limit=self._pool_limit,
            only=self._queues,
            here=self._here,
            view=self._view,
            wake=self._waker.wake,
            user_lease=user_lease,
            ahead=self._bindings.ahead,
        )

    def _connected(self) -> None:
        self._waker.new_queue = True
        self._waker.wake()
        self._waker.wake(_CONNECTED_SECONDS)

    def _serves(self, queue_id: str) -> bool | None:
        return self._claims.serves(queue_id)

    def _pool_limit(self) -> int | None:
        pool = self._bindings.work_pool()
        return pool.concurrency_limit if pool else None

    def _pool_id(self) -> UUID | None:
        pool = self._bindings.work_pool()
        return pool.id if pool else None

    async def _keep_card(self) -> None:
        """Tell the others when something changed here."""
        while True:
            card, told = self.card(), self._heartbeat.card
            if card != told:
                self._heartbeat.update(card)
            if told.draining and not card.draining:  # switched on again
                self._waker.wake()
            await asyncio.sleep(_CARD_SECONDS)

    def _lost_in_thread(self, incarnation: str) -> None:
        self._loop.call_soon_threadsafe(self._lost, incarnation)

    def _lost(self, incarnation: str) -> None:
        """Others took over what we ran: drop it, and go on as a new worker of the same name."""
        if incarnation == self._incarnation:
            self._incarnation = secrets.token_hex(4)
            self._start(self._warm.abandon())
            self._heartbeat.update(self.card())

    def _heartless_in_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._heartless)

    def _heartless(self) -> None:
        """Give up what runs here before others, who do not hear of us any more, start it beside us."""
        logger.error("the heartbeat has ended, and so the worker does")
        self._bindings.stop()

    async def _hand_back(self) -> None:
        await self._recovery.hand_back(self.card(), self._warm.ended_early, f"worker {self._name} was stopped")

    async def _put_back(self, runs: Collection[UUID]) -> Collection[str]:
        why = f"worker {self._name} had no answer when it took this"
        return await self._recovery.put_back(self.card(), why, only=runs)

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a part of the worker ended: %s", error, exc_info=error)

    async def _end_background(self) -> None:
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)


class _Leased:
    """Runs the attempt of a `run-stage` run under the lease that the run was claimed with."""

    def __init__(self, here: Here, lease: Lease | None) -> None:
        self._here, self._lease = here, lease

    async def dispatch(self, job: StageJob, *, on_event: Callable[[ExecutionEvent], None]) -> ExecutionResult:
        """See `StageDispatcher`."""
        facts = {"worker": self._here.name, "protocol": "ours", "flow_run": None}
        on_event(ExecutionEvent("placed", facts, time.time()))
        lease = self._lease
        if lease is None and job.leased:  # started by hand, in a queue without a class
            lease = await self._here.place.dispatcher.wait_lease(job)
        return await self._here.run(job, lease, on_event)
