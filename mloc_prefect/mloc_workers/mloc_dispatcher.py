"""Runs attempts at MLOC workers, i.e. workers that speak the original protocol over Redis. [protocol 2.4, 3].

A worker gets its task in a message that may be lost, reports its end in another one, and leaves its result in the
shared results root or posts it. It cannot be stopped: after a cancellation or a timeout it works to the end of its
task, gets no other task until then, and its reports about this one are ignored.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mloc_prefect.errors import ExecutionError, ExecutionFailure, StoreError
from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionResult
from mloc_prefect.mloc_workers.result_location import ResultLocation, failure_of
from mloc_prefect.mloc_workers.row_ranges import exact_spec
from mloc_prefect.mloc_workers.subscription import EventSubscription
from mloc_prefect.mloc_workers.worker_list import WorkerList
from mloc_prefect.mloc_workers.worker_selection import ScarcityWeights, choose_worker
from mloc_prefect.mloc_workers.worker_session import SessionEnd, SessionTimes, WorkerSession, works_at

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mloc_prefect.flow.dispatcher import StageJob
    from mloc_prefect.mloc_workers.worker_selection import WorkerChoice
    from mloc_prefect.plan.resources import ResourceRequest
    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.store.backends import Stores
    from mloc_prefect.store.records import WorkerRecord

_log = logging.getLogger(__name__)
_REMEMBERED = 1000
_MOVES = 1
"""How often an attempt may continue at another worker after its own was lost."""


class MlocDispatcher:
    """Runs attempts at MLOC workers; a `StageDispatcher` for one event loop.

    Args:
        stores: Registry, messages, leases.
        root: Results root that the workers, or the endpoint that they post to, share with this process.
        times: Waiting times.
        weights: When the best worker is chosen instead of the first.
    """

    def __init__(
        self, stores: Stores, root: Path, times: SessionTimes | None = None, *, weights: ScarcityWeights | None = None
    ) -> None:
        self._stores = stores
        self._weights = weights or ScarcityWeights()
        self._root = root
        self._times = times or SessionTimes()
        self._subscription = EventSubscription(stores.publisher)
        self._worker_list = WorkerList(stores.workers, self._times.acknowledge)
        self._waiting = 0
        self._failed: dict[str, set[str]] = {}
        self._held: set[asyncio.Task[None]] = set()

    @classmethod
    def of(cls, stores: Stores, settings: MlocSettings) -> MlocDispatcher:
        """Return the dispatcher of a site with these settings."""
        return cls(stores, settings.results_root, weights=ScarcityWeights.of(settings))

    async def dispatch(self, job: StageJob, *, on_event: Callable[[ExecutionEvent], None]) -> ExecutionResult:
        """See `StageDispatcher`. A lost worker fails the attempt only when no other one is free."""
        spec = await asyncio.to_thread(exact_spec, job.request)
        job = replace(job, request=replace(job.request, spec=spec))
        attempt = _TrackedAttempt(job, on_event, await self._failed_before(job))
        while True:
            try:
                await self._subscription.listening()
                session = await self._find_worker(attempt)
                result = await self._run_attempt(session, attempt)
            except StoreError as error:
                attempt.wait(error.message)
                await asyncio.sleep(self._times.poll)
                continue
            if result is not None:
                return result

    async def choice(self, resources: ResourceRequest) -> WorkerChoice:
        """Return which workers could take such a task now, or why none can.

        Raises:
            StoreError: The registry cannot be reached.
        """
        workers = await self._worker_list.workers()
        return choose_worker(
            workers, resources, demand=self._waiting + 1, engaged=self._subscription.followed, weights=self._weights
        )

    async def close(self) -> None:
        """Stop to listen; workers that still run an abandoned task are no longer followed."""
        if self._held:
            await asyncio.wait(self._held, timeout=self._times.close)
        for task in self._held:
            task.cancel()
        await asyncio.gather(*self._held, return_exceptions=True)
        await self._subscription.close()

    async def _failed_before(self, job: StageJob) -> set[str]:
        """Return the workers where earlier attempts of the task failed, from memory or from its record."""
        task_id = job.request.task_id
        if task_id not in self._failed and job.request.attempt > 1:
            try:
                record = await self._stores.tasks.get(task_id)
            except StoreError:
                record = None
            if record is not None and record.last_failed_worker:
                self._remember(task_id, record.last_failed_worker)
        return self._failed.get(task_id, set())

    def _remember(self, task_id: str, worker_id: str) -> None:
        self._failed.setdefault(task_id, set()).add(worker_id)
        if len(self._failed) > _REMEMBERED:
            del self._failed[next(iter(self._failed))]

    async def _find_worker(self, attempt: _TrackedAttempt) -> WorkerSession:
        """Return a session with a worker, as soon as one is free."""
        self._waiting += 1
        try:
            while True:
                workers = await self._worker_list.workers()
                engaged = self._subscription.followed | attempt.cooling_down(asyncio.get_running_loop().time())
                choice = choose_worker(
                    workers,
                    attempt.job.resources,
                    demand=self._waiting,
                    avoid=attempt.avoid,
                    engaged=engaged,
                    weights=self._weights,
                )
                resumed = [w for w in workers if not w.stale and works_at(w, attempt.task_id)]
                for worker in (*resumed, *choice.ready):
                    if worker.worker_id in self._subscription.followed:
                        continue
                    session = await self._open_session(worker, attempt)
                    if session is not None:
                        return session
                attempt.wait(choice.why or "the workers that fit have just been taken")
                await self._subscription.wait(self._times.retry if attempt.cooldown else self._times.poll)
        finally:
            self._waiting -= 1

    async def _open_session(self, worker: WorkerRecord, attempt: _TrackedAttempt) -> WorkerSession | None:
        holder = f"{attempt.task_id} {uuid4().hex[:8]}"
        session = WorkerSession(
            stores=self._stores,
            subscription=self._subscription,
            worker=worker,
            task_id=attempt.task_id,
            holder=holder,
            times=self._times,
        )
        try:
            if await session.acquire_lease() and await self._is_still_free(session):
                return session
        except BaseException:
            await asyncio.shield(session.release())
            raise
        attempt.cooldown[worker.worker_id] = asyncio.get_running_loop().time() + self._times.retry
        await session.release()
        return None

    async def _is_still_free(self, session: WorkerSession) -> bool:
        """Return whether the worker, now under our lease, is still free or already runs this task."""
        now = await self._worker_list.worker(session.worker_id)
        if now is None or now.stale or not (now.status == "IDLE" or works_at(now, session.task_id)):
            return False
        session.worker, session.begun = now, works_at(now, session.task_id)
        return True

    async def _run_attempt(self, session: WorkerSession, attempt: _TrackedAttempt) -> ExecutionResult | None:
        """Run the attempt at one worker; None when it must continue at another one."""
        location = ResultLocation.of(attempt.job.request, self._root)
        sent = False
        try:
            if not session.begun and not await session.send_task(attempt.job):
                self._send_again(session, attempt, f"no subscriber received the message for worker {session.worker_id}")
                return None
            sent = True
            attempt.placed(session.worker_id)
            end = await session.follow_task(attempt.job.timeout, lambda: attempt.placed(session.worker_id, begun=True))
            sent = end.how == "timed_out"
            return await self._ended(end, session, attempt, location)
        finally:
            if sent:  # cancelled or timed out: the worker still runs the task
                self._hold_until_done(session)
            else:
                await asyncio.shield(session.release())

    async def _ended(
        self, end: SessionEnd, session: WorkerSession, attempt: _TrackedAttempt, location: ResultLocation
    ) -> ExecutionResult | None:
        if end.how == "undelivered":
            await session.set_idle()
            self._send_again(session, attempt, end.text)
            return None
        result = await location.wait(self._times.result) if end.how in {"succeeded", "unreported"} else None
        if end.how == "succeeded" or (result is not None and failure_of(result) is None):
            await session.set_idle()
            return self._result(result, session, attempt, location)
        self._remember(attempt.task_id, session.worker_id)
        if end.how == "lost" and await self._may_move(attempt):
            attempt.log(f"{end.text}; the attempt continues at another worker")
            return None
        text = failure_of(result) or end.text
        kind = {"lost": "exited", "timed_out": "timeout"}.get(end.how, "error")
        raise ExecutionError(text, failure=ExecutionFailure(text, kind=kind))  # type: ignore[arg-type]  # of the table

    async def _may_move(self, attempt: _TrackedAttempt) -> bool:
        attempt.moves += 1
        attempt.avoid = self._failed.get(attempt.task_id, set())
        if attempt.moves > _MOVES:
            return False
        ready = choose_worker(await self._worker_list.workers(fresh=True), attempt.job.resources).ready
        return any(worker.worker_id not in attempt.avoid for worker in ready)

    def _send_again(self, session: WorkerSession, attempt: _TrackedAttempt, text: str) -> None:
        attempt.log(f"{text}; the task is sent again")
        attempt.cooldown[session.worker_id] = asyncio.get_running_loop().time() + self._times.retry

    def _result(
        self, result: Any, session: WorkerSession, attempt: _TrackedAttempt, location: ResultLocation
    ) -> ExecutionResult:
        if result is None:
            attempt.log(f"worker {session.worker_id} left its result in a directory of its own", level="warning")
            result = _result_kept_elsewhere(session.worker_id)
            location.write_to_task(result)
        summary = {"engine": "original", "worker": session.worker_id}
        if isinstance(result, dict) and isinstance(result.get("model"), str):
            summary["model"] = result["model"]
        self._failed.pop(attempt.task_id, None)
        return ExecutionResult(
            str(location.store_in_attempt(result)), summary=summary, delivered=location.is_delivered()
        )

    def _hold_until_done(self, session: WorkerSession) -> None:
        """Keep the lease in the background while the worker finishes an abandoned task."""
        task = asyncio.create_task(self._follow_to_end(session), name=f"abandoned at {session.worker_id}")
        self._held.add(task)
        task.add_done_callback(self._held.discard)

    async def _follow_to_end(self, session: WorkerSession) -> None:
        try:
            end = await session.follow_task(None)
            _log.info("abandoned task %s at worker %s has ended: %s", session.task_id, session.worker_id, end.how)
            if end.how in {"succeeded", "unreported", "undelivered"}:
                await session.set_idle()
        finally:
            await asyncio.shield(session.release())


@dataclass(slots=True)
class _TrackedAttempt:
    """One attempt, at whichever worker."""

    job: StageJob
    on_event: Callable[[ExecutionEvent], None]
    avoid: set[str]
    cooldown: dict[str, float] = field(default_factory=dict)
    moves: int = 0
    _reason: str | None = None

    @property
    def task_id(self) -> str:
        return self.job.request.task_id

    def cooling_down(self, now: float) -> set[str]:
        """Return the workers that just lost a message of ours, or that another dispatcher has."""
        self.cooldown = {worker_id: until for worker_id, until in self.cooldown.items() if now < until}
        return set(self.cooldown)

    def wait(self, reason: str) -> None:
        if reason != self._reason:
            self._reason = reason
            self._report("waiting", reason=reason)

    def placed(self, worker_id: str, *, begun: bool = False) -> None:
        self._reason = None
        self._report("placed", worker=worker_id, protocol="original", flow_run=None, begun=begun)

    def log(self, message: str, level: str = "info") -> None:
        self._report("log", message=message, level=level)

    def _report(self, kind: Any, **data: Any) -> None:
        self.on_event(ExecutionEvent(kind, data, time.time()))


def _result_kept_elsewhere(worker_id: str) -> dict[str, Any]:
    return {
        "ok": True,
        "worker_id": worker_id,
        "note": "the worker succeeded and kept its result in its own RESULTS_DIR, which is not shared with this site; "
        "share that directory, or give the task an http destination",
    }
