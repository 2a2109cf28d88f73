"""`WorkPoolDispatcher`: an attempt as a child run on the pool, taken by whichever worker has leased what it needs."""

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

from mloc_prefect.errors import DispatchError, ExecutionError
from mloc_prefect.execution.hosttypes import engine_key
from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionFailure
from mloc_prefect.orchestrate.api import ask
from mloc_prefect.orchestrate.deployments import RUN_STAGE, ensure_deployment
from mloc_prefect.orchestrate.engine import child_task
from mloc_prefect.orchestrate.follow import GONE
from mloc_prefect.orchestrate.jobfile import EventReader, read_outcome, write_job
from mloc_prefect.orchestrate.lost import STOPPED, WorkerLostError, WorkerStoppedError
from mloc_prefect.orchestrate.outage import until_answered
from mloc_prefect.worker.queues import RequirementClass, ensure_queue

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from prefect.client.orchestration import PrefectClient

    from mloc_prefect.execution.protocol import ExecutionResult
    from mloc_prefect.orchestrate.dispatch import StageJob
    from mloc_prefect.orchestrate.follow import Followed, RunFollower
    from mloc_prefect.orchestrate.jobfile import Outcome

_log = logging.getLogger(__name__)

WAITING = "Waiting"
"""Name of the state of an attempt that waits for a place: Prefect would make `Scheduled` `Late`, without our words."""

_TAIL_SECONDS = 0.5  # how late what an executor says elsewhere is heard
_TELL_AFTER = 1.0  # waiting for less is not worth a word
_TELL_EVERY = 5.0
_TELLS_A_SECOND, _TELLS_AT_ONCE = 2.0, 20
_SETTLE_SECONDS = 10.0  # how long a file of another machine may take to show here, or a cancelled run to end


@dataclass(slots=True)
class _Attempt:
    """One attempt elsewhere, as its dispatcher sees it."""

    job: StageJob
    directory: Path
    flow_run: UUID
    on_event: Callable[[ExecutionEvent], None]
    events: EventReader
    worker: str | None = None
    reason: str = ""

    def forward(self) -> None:
        """Pass on what was said there since the last time."""
        for event in self.events.read():
            if event.kind != "placed":
                self.on_event(event)
                continue
            self.worker = event.data.get("worker")
            self.on_event(ExecutionEvent("placed", {**event.data, "flow_run": str(self.flow_run)}, event.ts))

    def waiting(self, reason: str) -> None:
        """Tell why it waits."""
        self.reason = reason
        get_run_logger().info("waiting: %s", reason)
        self.on_event(ExecutionEvent("waiting", {"reason": reason}, time.time()))


class _Pace:
    """Lets `rate` things through a second, `burst` at once.

    Why tasks wait changes whenever something starts or ends: with a thousand waiting, to tell each of them each time
    would keep the server from everything else.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._left, self._at = float(burst), time.monotonic()

    def allows(self) -> bool:
        """Return whether one more may pass now, and count it."""
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
        why: Says in words why a job waits.
    """

    def __init__(self, client: PrefectClient, pool: str, runs: RunFollower, why: Callable[[StageJob], str]) -> None:
        self._client = client
        self._pool = pool
        self._runs = runs
        self._why = why
        self._pace = _Pace(_TELLS_A_SECOND, _TELLS_AT_ONCE)
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
            on_event: As there; what is said elsewhere is passed on.
            prefer: Workers that should have it, if they take it soon.
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
        """Make the child run, once for each attempt of a stage run, however often the request is sent."""
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
            raise DispatchError(f"the Prefect server took no run for it: {error or type(error).__name__}") from error

    async def _post(self, needs: RequirementClass, body: dict[str, Any]) -> UUID:
        for _ in range(2):  # a second time when somebody deleted the deployment since
            deployment = await self._ready(needs)
            run = await ask(self._client, "POST", f"/deployments/{deployment}/create_flow_run", body)
            if run is not None:
                return UUID(run["id"])
            self._deployment = None
            self._known.clear()
        raise DispatchError(f"deployment {RUN_STAGE.flow} on pool {self._pool!r} cannot be made")

    async def _ready(self, needs: RequirementClass) -> UUID:
        """Return the deployment, made with the queue of a class when it is missing; by one caller for all."""
        async with self._making:
            if self._deployment is None:
                self._deployment = await ensure_deployment(self._client, RUN_STAGE, self._pool)
            if needs.name not in self._known:
                await ensure_queue(self._client, self._pool, needs)
                self._known.add(needs.name)
            return self._deployment

    async def _outcome(self, attempt: _Attempt, followed: Followed) -> Outcome:
        """Return how the attempt ends elsewhere; passes on what is said there meanwhile."""
        patience = _TELL_AFTER
        while True:
            waiting = followed.state == "SCHEDULED"
            await followed.wait(patience if waiting else _TAIL_SECONDS)
            if not waiting:
                await asyncio.to_thread(attempt.forward)
                if outcome := await asyncio.to_thread(read_outcome, attempt.directory):
                    return outcome
            if followed.ended:
                return await self._ended(attempt, followed)
            if waiting and followed.state == "SCHEDULED":
                reason, patience = self._why(attempt.job), _TELL_EVERY
                if reason != attempt.reason and (not attempt.reason or self._pace.allows()):
                    attempt.waiting(reason)

    async def _ended(self, attempt: _Attempt, followed: Followed) -> Outcome:
        """Return the outcome of a run that is said to be over; without one, say what became of it."""
        end = time.monotonic() + _SETTLE_SECONDS
        while followed.ended:
            await asyncio.to_thread(attempt.forward)
            if outcome := await asyncio.to_thread(read_outcome, attempt.directory):
                return outcome
            await self._confirm(attempt, followed)
            if followed.state == "CANCELLED":
                failure = ExecutionFailure("cancelled", kind="cancelled")
                raise ExecutionError("cancelled", retryable=False, failure=failure)
            if followed.state in {"CRASHED", GONE} or time.monotonic() > end:
                where = attempt.worker or "its worker"
                if followed.state == "CRASHED" and followed.message == STOPPED:
                    raise WorkerStoppedError(f"{where} was stopped", attempt.worker)
                raise WorkerLostError(f"{where} was lost: {followed.message or followed.state.lower()}", attempt.worker)
            await asyncio.sleep(_TAIL_SECONDS)  # the files of another machine may show later than its messages
        return await self._outcome(attempt, followed)

    async def _confirm(self, attempt: _Attempt, followed: Followed) -> None:
        try:
            await self._runs.confirm(attempt.flow_run)
        except httpx.HTTPError as error:
            _log.info("the end of run %s is not confirmed: %s", attempt.flow_run, error)
            await followed.wait(_TAIL_SECONDS)

    async def _cancel_created(self, creating: asyncio.Future[UUID]) -> None:
        """Cancel a run that was being created: it may be there although nobody waited for the answer.

        Not while the server is away: Prefect itself cancels what is left below a cancelled run.
        """
        await asyncio.wait({creating}, timeout=_SETTLE_SECONDS)
        creating.cancel()
        try:
            flow_run = await creating
        except (asyncio.CancelledError, DispatchError):
            return
        with self._runs.following(flow_run) as followed:
            await self._cancel(flow_run, followed)

    async def _cancel(self, flow_run: UUID, followed: Followed) -> None:
        """Cancel a run and wait until its executor has let go, or a moment."""
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
                await followed.wait(_TAIL_SECONDS)
        except httpx.HTTPError as error:
            _log.warning("run %s could not be cancelled: %s", flow_run, error)
