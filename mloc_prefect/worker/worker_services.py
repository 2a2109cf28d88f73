"""All of a worker besides Prefect's polling and process runs: machine, claims, runs in its loop, heartbeat, reaper."""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mloc_prefect.cluster.cluster_view import ClusterView, WaitReasons
from mloc_prefect.cluster.deployments import RUN_WORKFLOW
from mloc_prefect.cluster.heartbeat import Heartbeat
from mloc_prefect.cluster.identity import WorkerProcess
from mloc_prefect.cluster.membership import VariableMembership
from mloc_prefect.cluster.orphans import Orphans
from mloc_prefect.cluster.reaper import Reaper
from mloc_prefect.cluster.results_proof import ResultsProof
from mloc_prefect.cluster.run_recovery import RecoveryCause, RunRecovery
from mloc_prefect.cluster.run_sweep import RunSweep
from mloc_prefect.cluster.worker_artifact import publish_workers
from mloc_prefect.cluster.worker_card import SHOWN, WorkerCard
from mloc_prefect.prefect_ext.cancel_watch import CancelWatch
from mloc_prefect.prefect_ext.run_follower import RunFollower
from mloc_prefect.prefect_ext.shared_client import SharedClient
from mloc_prefect.process.kept_watch import kept_running
from mloc_prefect.worker.claims.claim_loop import ClaimLoop
from mloc_prefect.worker.claims.left_runs import LeftRuns
from mloc_prefect.worker.claims.pending import REST_SECONDS, PendingClaims
from mloc_prefect.worker.event_listener import EventListener, hearing
from mloc_prefect.worker.in_loop_runs import InLoopRuns
from mloc_prefect.worker.local_placement import LeasedPlacement, LocalPlacement, StageSlots
from mloc_prefect.worker.machine import this_machine
from mloc_prefect.worker.own_runs import OwnRuns
from mloc_prefect.worker.placement import PlacingDispatcher
from mloc_prefect.worker.user_runs import UserRuns
from mloc_prefect.worker.work_pool_dispatcher import WorkPoolDispatcher

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine
    from types import TracebackType
    from typing import Self
    from uuid import UUID

    from anyio import CapacityLimiter
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, WorkPool
    from prefect.flows import Flow

    from mloc_prefect.flow.dispatcher import StageDispatcher
    from mloc_prefect.leases import Lease
    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.worker.claims.claim_loop import RunClaim
    from mloc_prefect.worker.machine import Machine

logger = logging.getLogger("prefect.mloc.worker")

_CARD_SECONDS = 1.0
_SETTLE_SECONDS = 2.0
_FULL_CANCEL_POLL_EVERY = 5
_CONNECTED_SECONDS = 1.0  # the server starts to send events a moment after it has accepted the connection
_FREED_SECONDS = 0.05  # Prefect frees the slot of a run a moment after the run


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerBindings:
    """What the services need of Prefect's worker.

    Attributes:
        poll: Fetches scheduled runs and starts them; returns their ids.
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


class WorkerServices:
    """One worker; an async context manager, bound to one event loop.

    Args:
        settings: Settings in force.
        name: Its id.
        pool: Name of its pool.
        queues: Names of the queues that it serves; empty for all.
        coordinator_only: It runs workflow runs only and offers no hardware.
        bindings: Prefect's worker.

    Attributes:
        draining: It takes no further runs.
        pending: Claims on runs that have not begun.
        left: Claimed runs that have left this worker without a known end.
        own_runs: Which runs it may start.
    """

    pending: PendingClaims
    left: LeftRuns

    def __init__(
        self,
        settings: MlocSettings,
        *,
        name: str,
        pool: str,
        queues: Collection[str],
        coordinator_only: bool,
        bindings: WorkerBindings,
    ) -> None:
        self._settings, self._name, self._pool, self._queues = settings, name, pool, queues
        self._coordinator_only = coordinator_only
        self._bindings = bindings
        self._incarnation = secrets.token_hex(4)
        self._stack = AsyncExitStack()
        self._leases: dict[UUID, Lease] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._machine: Machine | None = None
        self._here: LocalPlacement | None = None
        self._switched_off: Callable[[], bool] = lambda: False
        self._proof: ResultsProof | None = None
        self.own_runs = OwnRuns(user_flows=settings.user_flows)
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
        """End the runs, hand them back, and remove the worker from the list."""
        self.draining = True
        await self._stack.aclose()

    @property
    def incarnation(self) -> str:
        """Distinguishes this process from others that had its id, and from itself before it was declared lost."""
        return self._incarnation

    @property
    def dispatcher(self) -> StageDispatcher:
        """Where workflow runs dispatch their stages to."""
        return self._dispatcher

    async def claim(self, client: PrefectClient, here: Collection[UUID], *, settled: bool) -> list[RunClaim]:
        """Return the runs to start now, see `ClaimLoop.choose`; their leases are kept for `run`, or until `drop`.

        Args:
            client: Open client.
            here: Runs that the worker is claiming or running.
            settled: See `ClaimLoop.choose`.
        """
        if not (self._open_to_work and self._heartbeat.sure_of(self._incarnation, share=1.0)):
            return []  # after a pause it first has to find out whether it was declared lost
        await self.pending.settle_unknown(here)
        busy = {*here, *self.pending.resting}
        settled, self._waker.new_queue = settled or self._waker.new_queue, False  # not after: more may come meanwhile
        chosen = await self._claims.choose(client, busy, settled=settled)
        claims = await self.own_runs.keep_own(client, self._bindings.work_pool(), chosen, self._claims.give_back)
        self._leases |= {claim.entry.flow_run.id: claim.lease for claim in claims if claim.lease is not None}
        return claims

    @property
    def _open_to_work(self) -> bool:
        """Whether it takes further runs: it is not ending, was not switched off, and sees the results root."""
        return not (self.draining or self._switched_off() or (self._proof and self._proof.problem))

    def note_claimed(self, flow_run_id: UUID, incarnation: str) -> None:
        """Note that this worker has claimed a run, as `incarnation`."""
        self.pending.note_claimed(flow_run_id, incarnation)
        self.left.note_claimed(flow_run_id, incarnation)

    def note_unknown_claim(self, flow_run_id: UUID) -> None:
        """Note that it is unknown whether this worker has claimed a run."""
        self.pending.note_unknown(flow_run_id)
        self.left.note_unsettled(flow_run_id, self._incarnation)
        self._waker.wake(REST_SECONDS)

    def lease_of(self, flow_run_id: UUID) -> Lease | None:
        """Return the lease that a run was claimed with."""
        return self._leases.get(flow_run_id)

    async def drop(self, flow_run_id: UUID) -> None:
        """Give back the lease of a run that has ended, or does not run here; nothing happens when there is none."""
        self.pending.forget_claimed(flow_run_id)
        lease = self._leases.pop(flow_run_id, None)
        if lease is not None and self._machine is not None:
            await self._machine.leases.release(lease)
            self.freed()

    async def run(self, flow: Flow[..., Any], flow_run: FlowRun) -> int:
        """Run one of our flows to its end; returns 0, or 1 when it failed without a report."""
        held = partial(self._heartbeat.confirmed, self._incarnation)
        if flow.name == RUN_WORKFLOW.flow or self._here is None:
            return await self._warm.run(flow, flow_run, self._dispatcher, held)
        return await self._warm.run(flow, flow_run, LeasedPlacement(self._here, self._leases.get(flow_run.id)), held)

    def freed(self) -> None:
        """Poll for further runs in a moment, if some may wait: one ended."""
        if not self.draining and self._claims.leaves_runs:
            self._waker.wake(_FREED_SECONDS)

    def card(self) -> WorkerCard:
        """Return the card that this worker publishes now."""
        limiter = self._bindings.limiter()
        card = WorkerCard(
            id=self._name,
            incarnation=self._incarnation,
            pool=self._pool,
            role="coordinator" if self._coordinator_only else "worker",
            process=WorkerProcess.own(),
            slots=None if limiter is None else int(limiter.available_tokens),
            draining=self.draining or self._switched_off(),
            problem=self._proof.problem if self._proof else "",
            runs=tuple(map(str, self._warm.ids[:SHOWN])),
            heartbeat=self._settings.heartbeat_seconds,
        )
        return card if self._machine is None else self._machine.fill_in(card)

    async def _open(self) -> None:
        enter = self._stack.enter_async_context
        shared = await enter(SharedClient())
        self._client = shared.client
        self._recovery = RunRecovery(self._client, self._settings.max_retries)
        self._cancels = CancelWatch(self._client, full_poll_every=_FULL_CANCEL_POLL_EVERY)
        follower = RunFollower(self._client)
        self.left = LeftRuns(self._recover_left, patience=self._settings.heartbeat_ttl)
        self._warm = InLoopRuns(self._client, self._cancels, self.left.note_ended, shared.in_force)
        if not self._coordinator_only:
            self._machine = await enter(this_machine(self._settings))
            slots = StageSlots(self._bindings.limiter)
            self._here = LocalPlacement(self._name, self._machine, slots, lambda: self._open_to_work, self.freed)
        self._view = ClusterView(VariableMembership(self._client), self._settings.heartbeat_ttl, own=self.card)
        self._proof = proof = await ResultsProof.started(self._settings, self._client, self._name, self._view)
        self._dispatcher = self._make_dispatcher(follower)
        self._waker = EventListener(self._bindings.poll, self._pool_id, self._serves)
        self._claims = self._make_claims()
        reaper = Reaper.of(self._settings, self._client, self._view, self._name)
        await reaper.claim_name(self.card())
        self._heartbeat = heartbeat = Heartbeat(
            self._settings, self.card(), self._lost_in_thread, self._heartless_in_thread
        )
        self._switched_off = lambda: heartbeat.switched_off
        self.pending = PendingClaims(
            self._name, self._client, is_sure=heartbeat.sure_of, put_back=self._put_back, confirm=heartbeat.confirmed
        )
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._heartbeat.start)
        self._stack.push_async_callback(self._heartbeat.stop)
        self._stack.push_async_callback(self._hand_back)
        await enter(self._warm)
        self._stack.push_async_callback(self._claims.close)
        await enter(follower.running())
        await enter(self._cancels.running())
        self._stack.push_async_callback(self._end_background)
        self._keep(reaper.watch)
        self._keep(Orphans(self._client, self._pool, self._view).watch)
        sweep = partial(RunSweep.of, self._settings, self._recovery, reaper, self._view)
        self._keep(sweep(pool=self._pool, name=self._name, own=lambda: self._warm.ids).watch)
        self._keep(self._settle_left)
        self._keep(self._keep_card)
        self._keep(lambda: proof.watch(self._waker.wake))
        beat = self._settings.heartbeat_seconds
        self._keep(lambda: publish_workers(self._client, self._view, self._name, beat))
        listeners = [self._waker.notice, follower.notice, self._cancels.notice]
        await enter(hearing(listeners, self._connected))
        await enter(self._waker.running())

    def _make_dispatcher(self, follower: RunFollower) -> StageDispatcher:
        pool = WorkPoolDispatcher(self._client, self._pool, follower, WaitReasons(self._view).why)
        return PlacingDispatcher(
            local=self._here, pool=pool, view=self._view, original=self._original(), mode=self._settings.dispatch
        )

    def _original(self) -> Any:
        """Return the dispatcher for MLOC workers, which are known through Redis only."""
        url = self._settings.redis_url
        if url is None or self._settings.dispatch == "ours":
            return None
        from mloc_prefect.mloc_workers.mloc_dispatcher import MlocDispatcher
        from mloc_prefect.store.backends import open_stores

        stores = open_stores(url)
        self._stack.push_async_callback(stores.close)
        original = MlocDispatcher.of(stores, self._settings)
        self._stack.push_async_callback(original.close)
        return original

    def _make_claims(self) -> ClaimLoop:
        user = UserRuns(self._machine, self.own_runs) if self._machine is not None else None

        async def user_lease(run: FlowRun) -> tuple[bool, Lease | None]:
            if user is None:
                return False, None
            return await user.lease(self._client, self._bindings.work_pool(), run)

        return ClaimLoop(
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
        """Publish the card when it changed; poll again when this process is sure of itself after a pause."""
        sure = True
        while True:
            was_sure, sure = sure, self._heartbeat.sure_of(self._incarnation, share=1.0)
            if sure and not was_sure:
                self._waker.wake()
            card, published = self.card(), self._heartbeat.card
            if card != published:
                self._heartbeat.update(card)
            if published.draining and not card.draining:  # switched on again
                self._waker.wake()
            await asyncio.sleep(_CARD_SECONDS)

    async def _settle_left(self) -> None:
        while True:
            await asyncio.sleep(_SETTLE_SECONDS)
            if self._heartbeat.sure_of(self._incarnation):
                await self.left.settle()

    def _lost_in_thread(self, incarnation: str) -> None:
        self._loop.call_soon_threadsafe(self._lost, incarnation)

    def _lost(self, incarnation: str) -> None:
        """Other workers took over the runs: drop them, and continue as a new worker of the same name."""
        if incarnation == self._incarnation:
            self._incarnation = secrets.token_hex(4)
            self._start(self._warm.abandon())
            self._heartbeat.update(self.card())

    def _heartless_in_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._heartless)

    def _heartless(self) -> None:
        """Stop before other workers, who receive no heartbeat any more, start the same runs."""
        logger.error("the heartbeat has ended, stopping the worker")
        self._bindings.stop()

    async def _hand_back(self) -> None:
        await self._recovery.hand_back(self.card(), self._warm.ended_early)

    async def _recover_left(self, incarnation: str, runs: Collection[UUID]) -> None:
        await self._recovery.recover(replace(self.card(), incarnation=incarnation), only=runs)

    async def _put_back(self, runs: Collection[UUID]) -> Collection[str]:
        cause = RecoveryCause(f"worker {self._name} had no answer when it took this")
        return await self._recovery.put_back(self.card(), cause, only=runs)

    def _keep(self, watch: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a watch for the life of this worker."""
        self._start(kept_running(watch))

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a background task of the worker failed: %s", error, exc_info=error)

    async def _end_background(self) -> None:
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
