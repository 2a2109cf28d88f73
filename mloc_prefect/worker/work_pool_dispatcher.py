"""`WorkPoolDispatcher`: runs an attempt as a child run on the pool, on a worker that has leased what it needs."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger

from mloc_prefect.cluster.deployments import RUN_STAGE, ensure_deployment
from mloc_prefect.cluster.requirement_queues import RequirementClass, ensure_queue
from mloc_prefect.errors import DispatchError, reason
from mloc_prefect.execution.host_types import engine_key
from mloc_prefect.execution.protocol import ExecutionEvent
from mloc_prefect.flow.attempt_files import EventReader, read_outcome, write_job
from mloc_prefect.flow.outcome import cancelled_error
from mloc_prefect.flow.worker_loss import WorkerLostError, WorkerStoppedError
from mloc_prefect.prefect_ext.requests import ask, late_answer
from mloc_prefect.prefect_ext.retry import until_answered
from mloc_prefect.prefect_ext.run_facts import WAITING
from mloc_prefect.prefect_ext.run_follower import GONE
from mloc_prefect.prefect_ext.state_reasons import StateCode
from mloc_prefect.prefect_ext.tracking_tasks import child_task

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from prefect.client.orchestration import PrefectClient

    from mloc_prefect.execution.protocol import ExecutionResult
    from mloc_prefect.flow.attempt_files import AttemptOutcome
    from mloc_prefect.flow.dispatcher import StageJob
    from mloc_prefect.prefect_ext.run_follower import FollowedRun, FollowedState, RunFollower

_log = logging.getLogger(__name__)


_REPORT_AFTER = 1.0  # a shorter wait is not reported
_REPORT_EVERY = 5.0
_REPORTS_A_SECOND, _REPORTS_AT_ONCE = 2.0, 20
_SETTLE_SECONDS = 10.0  # how long a file of another machine may take to show here, or a cancelled run to end


@dataclass(slots=True)
class _Attempt:
    """One attempt on another worker."""

    job: StageJob
    directory: Path
    flow_run: UUID
    on_event: Callable[[ExecutionEvent], None]
    events: EventReader
    worker: str | None = None
    reason: str = ""

    def forward(self) -> None:
        """Pass on the events since the last call."""
        for event in self.events.read():
            if event.kind != "placed":
                self.on_event(event)
                continue
            self.worker = event.data.get("worker")
            self.on_event(ExecutionEvent("placed", {**event.data, "flow_run": str(self.flow_run)}, event.ts))

    def waiting(self, reason: str) -> None:
        """Report why it waits."""
        self.reason = reason
        get_run_logger().info("waiting: %s", reason)
        self.on_event(ExecutionEvent("waiting", {"reason": reason}, time.time()))


class _Pace:
    """Limits reports to `rate` a second, with a burst of `burst`.

    Why tasks wait changes whenever a run starts or ends: with a thousand waiting, a report for each of them each time
    would overload the server.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._left, self._at = float(burst), time.monotonic()

    def allows(self) -> bool:
        """Return whether one more report may be sent now, and count it."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class WorkPoolDispatcher:
    """Runs attempts as runs of `run-stage` on a pool; used inside the flow run of the stage.

    Args:
        client: Open client.
        pool: Name of the pool.
        runs: Follows the runs.
        why: Returns one clause about why a job waits.
        tail_seconds: How often the files of an attempt on another machine are read.
    """

    def __init__(
        self,
        client: PrefectClient,
        pool: str,
        runs: RunFollower,
        why: Callable[[StageJob], str],
        *,
        tail_seconds: float = 0.5,
    ) -> None:
        self._client = client
        self._pool = pool
        self._runs = runs
        self._why, self._tail_seconds = why, tail_seconds
        self._pace = _Pace(_REPORTS_A_SECOND, _REPORTS_AT_ONCE)
        self._known: set[str] = set()
        self._deployment: UUID | None = None
        self._making = asyncio.Lock()

    async def dispatch(
        self,
        job: StageJob,
        *,
        on_event: Callable[[ExecutionEvent], None],
        prefer: Sequence[str] = (),
        avoid: Sequence[str] = (),
    ) -> ExecutionResult:
        """See `StageDispatcher`.

        Args:
            job: The attempt.
            on_event: Called with each event of the attempt.
            prefer: Workers that should take it, if they do so soon.
            avoid: Workers on which it failed before.

        Raises:
            WorkerLostError: Its worker ended; another attempt may go better. `WorkerStoppedError` if it was stopped.
        """
        directory = await asyncio.to_thread(write_job, job)
        creating = asyncio.ensure_future(self._create(job, prefer, avoid))
        try:
            flow_run = await asyncio.shield(creating)
        except asyncio.CancelledError:
            await asyncio.shield(asyncio.create_task(self._cancel_created(creating)))
            raise
        attempt = _Attempt(job, directory, flow_run, on_event, EventReader(directory))
        with self._runs.following(flow_run) as followed:
            try:
                outcome = await self._outcome(attempt, followed)
            except BaseException:
                await asyncio.shield(asyncio.create_task(self._cancel(flow_run, followed)))
                raise
        if outcome.error is not None:
            raise outcome.error
        assert outcome.result is not None
        return outcome.result

    async def _create(self, job: StageJob, prefer: Sequence[str], avoid: Sequence[str]) -> UUID:
        """Create the child run: one for each attempt of a stage run, however often the request is sent."""
        context = FlowRunContext.get()
        if context is None or context.flow_run is None:
            raise DispatchError("a stage is sent to the pool only inside a flow run")
        needs = RequirementClass(job.resources, job.leased, job.priority)
        attempt = Path(job.request.attempt_dir).name
        body = {
            "name": f"{job.title} ({attempt})",
            "state": {"type": "SCHEDULED", "name": WAITING, "message": f"waiting: {self._why(job)}"},
            "parameters": {
                "attempt_dir": job.request.attempt_dir,
                "task": job.request.task_id,
                "engine": engine_key(job.executor.path, job.engine_options),
                "prefer": list(prefer),
                "avoid": list(avoid),
            },
            "work_queue_name": needs.name,
            "idempotency_key": f"{context.flow_run.id}/{job.request.task_id}/{attempt}",
            "tags": ["mloc", f"mloc-attempt:{job.request.task_id}"],
        }
        what = f"attempt {attempt} at {job.title}"
        name = f"{job.request.task_id} {attempt}"
        try:
            tracking = await until_answered(lambda: child_task(self._client, context, name), what)
            body["parent_task_run_id"] = str(tracking)
            return await until_answered(lambda: self._post(needs, body), what)
        except httpx.HTTPError as error:
            raise DispatchError(f"the Prefect server took no run for it: {reason(error)}") from error

    async def _post(self, needs: RequirementClass, body: dict[str, Any]) -> UUID:
        for _ in range(2):  # a second time if the deployment was deleted in between
            deployment = await self._ready(needs)
            run = await ask(self._client, "POST", f"/deployments/{deployment}/create_flow_run", body)
            if run is not None:
                return UUID(run["id"])
            self._deployment = None
            self._known.clear()
        raise DispatchError(f"deployment {RUN_STAGE.flow} on pool {self._pool!r} cannot be made")

    async def _ready(self, needs: RequirementClass) -> UUID:
        """Return the deployment; create it, and the queue of the class, if missing."""
        async with self._making:
            if self._deployment is None:
                self._deployment = await ensure_deployment(self._client, RUN_STAGE, self._pool)
            if needs.name not in self._known:
                await ensure_queue(self._client, self._pool, needs)
                self._known.add(needs.name)
            return self._deployment

    async def _outcome(self, attempt: _Attempt, followed: FollowedRun) -> AttemptOutcome:
        """Return how the attempt ends; pass on its events until then."""
        patience = _REPORT_AFTER
        while True:
            waiting = followed.state == "SCHEDULED"
            await followed.wait(patience if waiting else self._tail_seconds)
            if not waiting:
                await asyncio.to_thread(attempt.forward)
                if outcome := await asyncio.to_thread(read_outcome, attempt.directory):
                    return outcome
            if followed.ended:
                return await self._ended(attempt, followed)
            if waiting and followed.state == "SCHEDULED":
                reason, patience = self._why(attempt.job), _REPORT_EVERY
                if reason != attempt.reason and (not attempt.reason or self._pace.allows()):
                    attempt.waiting(reason)

    async def _ended(self, attempt: _Attempt, followed: FollowedRun) -> AttemptOutcome:
        """Return the outcome of a run that has ended; without one, raise the error that its state stands for."""
        end = time.monotonic() + _SETTLE_SECONDS
        while followed.ended:
            await asyncio.to_thread(attempt.forward)
            if outcome := await asyncio.to_thread(read_outcome, attempt.directory):
                return outcome
            confirmed = await self._confirm(attempt, followed)
            if followed.state == "CANCELLED":
                raise cancelled_error()
            # Only the API says why it crashed: an event does not carry the reason.
            if (confirmed and followed.state in {"CRASHED", GONE}) or time.monotonic() > end:
                raise _worker_error(attempt.worker, followed.latest)
            await asyncio.sleep(self._tail_seconds)  # the files of another machine may show later than its messages
        return await self._outcome(attempt, followed)

    async def _confirm(self, attempt: _Attempt, followed: FollowedRun) -> bool:
        """Read the state of the run; returns whether the API answered."""
        try:
            await self._runs.confirm(attempt.flow_run)
        except httpx.HTTPError as error:
            _log.info("the end of run %s is not confirmed: %s", attempt.flow_run, reason(error))
            await followed.wait(self._tail_seconds)
            return False
        return True

    async def _cancel_created(self, creating: asyncio.Future[UUID]) -> None:
        """Cancel a run whose creation was interrupted: it may exist although its answer did not arrive.

        If the server does not answer, Prefect itself cancels what is left below a cancelled run.
        """
        flow_run = await late_answer(creating, _SETTLE_SECONDS)
        if flow_run is None:
            return
        with self._runs.following(flow_run) as followed:
            await self._cancel(flow_run, followed)

    async def _cancel(self, flow_run: UUID, followed: FollowedRun) -> None:
        """Cancel a run, and wait up to 10 seconds for its end."""
        if followed.ended:
            return
        state = {"state": {"type": "CANCELLING", "name": "Cancelling", "message": "its stage was cancelled"}}
        end = time.monotonic() + _SETTLE_SECONDS
        try:
            await ask(self._client, "POST", f"/flow_runs/{flow_run}/set_state", state)
            while True:
                await self._runs.confirm(flow_run)
                if followed.ended or time.monotonic() > end:
                    return
                await followed.wait(self._tail_seconds)
        except httpx.HTTPError as error:
            _log.warning("run %s could not be cancelled: %s", flow_run, error)


def _worker_error(worker: str | None, state: FollowedState) -> WorkerLostError:
    """Return the error of an attempt whose run ended without an outcome."""
    where = worker or "its worker"
    if state.type == "CRASHED" and state.reason is not None and state.reason.code is StateCode.WORKER_STOPPED:
        return WorkerStoppedError(f"{where} was stopped", worker)
    return WorkerLostError(f"{where} was lost: {state.message or state.type.lower()}", worker)
