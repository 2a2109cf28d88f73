"""Runs one stage: resolves and validates its spec again, runs its attempts, reports them, and commits the result."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts.layout import RESPONSES
from mloc_prefect.diagnostics.masking import KnownSecrets
from mloc_prefect.errors import ExecutionError, MlocError
from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionRequest
from mloc_prefect.flow.attempt_loop import AttemptLoop, earlier_attempts, retry_time
from mloc_prefect.flow.commit import ResultCommitter
from mloc_prefect.flow.fencing import CancelFence
from mloc_prefect.flow.outcome import StageOutcome, was_cancelled
from mloc_prefect.flow.reports.stage_log import StageLog
from mloc_prefect.flow.stage_inputs import ResolvedStage, prepare
from mloc_prefect.prefect_ext.requests import current_api_url
from mloc_prefect.prefect_ext.run_control import also_wanted
from mloc_prefect.prefect_ext.stage_events import NullStageEvents
from mloc_prefect.trust.agent_configurations import AgentSite

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from mloc_prefect.artifacts.manifest import Manifest
    from mloc_prefect.execution.protocol import ExecutionResult
    from mloc_prefect.flow.commit import ComputedResult
    from mloc_prefect.flow.dispatcher import StageDispatcher
    from mloc_prefect.flow.fencing import RunFence
    from mloc_prefect.flow.observer import RunObserver
    from mloc_prefect.flow.options import RunOptions
    from mloc_prefect.plan.workflow_plan import StagePlan
    from mloc_prefect.prefect_ext.stage_events import StageEvents

Logger = logging.Logger | logging.LoggerAdapter[Any]
_LEVELS = {"debug": logging.DEBUG, "warning": logging.WARNING, "error": logging.ERROR}
_RELAYED = 200  # lines of the executor in the log of the run, for each attempt; stage.log has all of them


@dataclass(frozen=True, kw_only=True)
class RunScope:
    """What all stages of one run share.

    Attributes:
        options: Options of the run.
        dispatcher: Executes attempts.
        observer: Follows the run.
        fence: Says whether this start of the run is current.
        run_count: Number of this start, from 1.
        task_ids: Task id of each stage key.
        stopped: Earlier starts that ended because their worker was stopped: they cost no attempt.
        sleep: Waits before a retry.
    """

    options: RunOptions
    dispatcher: StageDispatcher
    observer: RunObserver
    fence: RunFence
    run_count: int
    task_ids: Mapping[str, str]
    stopped: frozenset[int] = frozenset()
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """The Prefect run of one stage.

    Attributes:
        log: Takes one line for each step.
        on_event: Called with each event of the executor.
        events: Reports attempts to Prefect.
        cancel: Set when this stage alone is to end.
        flow_run_id: Its flow run, or None outside Prefect.
        begun: Number of attempts that earlier starts of the run have begun, as far as its labels record.
    """

    log: Logger
    on_event: Callable[[ExecutionEvent], None] = lambda _: None
    events: StageEvents = field(default_factory=NullStageEvents)
    cancel: asyncio.Event = field(default_factory=asyncio.Event)
    flow_run_id: str | None = None
    begun: int = 0


async def run_stage(stage: StagePlan, scope: RunScope, run: StageRun) -> StageOutcome:
    """Run one stage whose upstream stages are DONE, to its end.

    A result that is stored from outside during the attempts ends it as DONE with that result; `run.cancel`, or a
    cancellation from outside, ends it as CANCELLED.

    Raises:
        MlocError: The last attempt failed; the message is for the user.
    """
    known = KnownSecrets.in_document([stage.effective, scope.options.params])
    try:
        work = await asyncio.to_thread(prepare, stage, scope.options, scope.task_ids)
        known = KnownSecrets.in_document([stage.effective, scope.options.params, work.spec])
        with StageLog(work.directory, known.mask) as journal:
            return await _StageRunner(stage, scope, run, work, journal, known).run_to_end()
    except MlocError as error:  # it is shown in states, records and messages
        error.message = known.mask(error.message)
        error.hint = None if error.hint is None else known.mask(error.hint)
        raise


class _StageRunner:
    """One stage and its attempts; an `AttemptListener`."""

    def __init__(
        self,
        stage: StagePlan,
        scope: RunScope,
        run: StageRun,
        work: ResolvedStage,
        journal: StageLog,
        known: KnownSecrets,
    ) -> None:
        self.known = known
        self.stage, self.scope, self.stage_run, self.work, self.journal = stage, scope, run, work, journal
        self.task_id = scope.task_ids[stage.key]
        self.attempt = self.begun = 0  # counted over all starts of the run
        self.relayed = 0
        self.placed: dict[str, Any] | None = None
        self.committer = ResultCommitter(
            directory=work.directory,
            task_id=self.task_id,
            name=stage.name,
            required=work.artifacts,
            destination=work.destination,
            allowed=scope.options.allowed_hosts(current_api_url()),
            fence=CancelFence(scope.fence, self._is_cancelled),
            stage_run=run.flow_run_id,
        )

    async def run_to_end(self) -> StageOutcome:
        for warning in self.work.warnings:
            self._log(f"warning: {warning}", level=logging.WARNING)
            told = ExecutionEvent("log", {"message": warning, "level": "warning"}, time.time())
            self.scope.observer.stage_event(self.stage.key, told)
        manifest = await asyncio.to_thread(self.committer.finished, self.work.sha256)
        if manifest is not None:
            self._log("finished before, nothing to do")
            return self._outcome(manifest, reused=True)
        if await self._is_cancelled():  # a task that was cancelled before it starts never runs
            return self._cancelled()
        return await self._first_end()

    async def _is_cancelled(self) -> bool:
        return await self.scope.options.task_watch.is_cancelled(self.task_id)

    def _cancelled(self) -> StageOutcome:
        self._log("cancelled")
        return StageOutcome(
            key=self.stage.key, node=self.stage.node, task_id=self.task_id, status="CANCELLED", error="cancelled"
        )

    async def _first_end(self) -> StageOutcome:
        """Return how the attempts end, unless a result or a cancellation from outside comes first.

        A cancellation of the run on the pool that an attempt is counts, too: people see that run there.
        """
        watch = self.scope.options.task_watch
        ending = asyncio.Event()  # once it is set, a cancellation means the end of the stage, not of its worker
        with also_wanted(ending.is_set):
            attempts = asyncio.ensure_future(self._run_attempts())
        completed = asyncio.ensure_future(watch.completed(self.task_id))
        stops = [asyncio.ensure_future(c) for c in (watch.cancelled(self.task_id), self.stage_run.cancel.wait())]
        try:
            await asyncio.wait({attempts, completed, *stops}, return_when=asyncio.FIRST_COMPLETED)
            ending.set()
        finally:
            for task in (attempts, completed, *stops):
                if not task.done():
                    task.cancel()
            ended = await asyncio.gather(attempts, completed, *stops, return_exceptions=True)
        if not attempts.cancelled() and not was_cancelled(attempts.exception()):
            return self._outcome(attempts.result())
        if completed.done() and not completed.cancelled() and completed.exception() is None:
            return await self._adopted()
        broken = next((e for e in ended if isinstance(e, Exception) and not was_cancelled(e)), None)
        if broken is not None:
            raise broken
        return self._cancelled()

    async def _adopted(self) -> StageOutcome:
        self._log("completed from outside: the result that was stored there counts")
        return self._outcome(await self.committer.adopt(self.work.sha256, self.scope.run_count))

    async def _run_attempts(self) -> Manifest:
        scope = self.scope
        earlier = earlier_attempts(self.work.directory, scope.run_count)
        self.begun = max(len(earlier), self.stage_run.begun)
        loop = AttemptLoop(
            settings=scope.options.settings,
            dispatcher=scope.dispatcher,
            committer=self.committer,
            spec_sha256=self.work.sha256,
            run_count=scope.run_count,
            stopped=scope.stopped,
            make_job=lambda directory, number: self.work.job(self._request(directory, number)),
            listener=self,
            sleep=scope.sleep,
        )
        return await loop.run_attempts()

    def attempt_started(self, attempt: int) -> None:
        """See `AttemptListener`."""
        self.attempt, self.placed, self.relayed = self.begun + attempt, None, 0
        self.scope.observer.stage_started(self.stage.key, attempt)
        self._log(f"attempt {attempt} starts")

    def attempt_failed(self, attempt: int, error: MlocError, delay: float | None) -> None:
        """See `AttemptListener`."""
        self._log_failure(attempt, error)
        self._report_failure(error, delay)
        if delay is not None:
            self.scope.observer.stage_retry(self.stage.key, attempt, str(error), delay)
            self._log(f"next attempt in {delay:g} s")

    def summary_of(self, result: ExecutionResult) -> dict[str, Any]:
        """See `AttemptListener`."""
        return {**result.summary, **({"reused_rows": result.reused_rows} if result.reused_rows else {})}

    def result_ready(self, computed: ComputedResult, *, computed_before: bool) -> None:
        """See `AttemptListener`."""
        if computed_before:
            self._log(f"the result of attempts/{computed.attempt_dir} is there, only its delivery is repeated")
        self._ensure_placed()

    def warn(self, text: str) -> None:
        """See `AttemptListener`."""
        self._log(text, level=logging.WARNING)

    def _request(self, directory: Path, attempt: int) -> ExecutionRequest:
        settings, options = self.scope.options.settings, self.scope.options
        return ExecutionRequest(
            task_id=self.task_id,
            name=self.stage.name,
            task_type=self.stage.task_type,
            executor=self.stage.executor.path,
            spec=self.work.spec,
            task_dir=str(self.work.directory),
            attempt_dir=str(directory),
            run_count=self.scope.run_count,
            attempt=attempt,
            upstream=self.work.upstream,
            settings={
                "home": str(settings.home),
                "mirrors": str(settings.mirrors_file) if settings.mirrors_file else None,
                "base_dir": str(options.base_dir),
                **self.committer.allowed.to_wire(),
                "results_root": str(options.root),
                "base_url": settings.base_url,
                "allowed_rewards": settings.allowed_rewards,
                "agents": AgentSite.of(settings).to_wire(),
                "max_retries": settings.max_retries,
                "inputs": inputs.to_wire() if (inputs := options.rules.roots) is not None else None,
                "strict": options.strict,
            },
        )

    def on_event(self, event: ExecutionEvent) -> None:
        """See `AttemptListener`."""
        self.journal.event(event)
        if event.kind == "waiting":
            self.stage_run.events.report("waiting", self.attempt, reason=str(event.data.get("reason") or ""))
        elif event.kind == "placed":
            self._report_placed(event.data)
        elif event.kind in {"progress", "metric"}:
            self._ensure_placed()
        elif event.kind == "shard":
            self.stage_run.events.report("shard", self.attempt, **event.data)
        elif event.kind == "log":
            self._relay(event.data)
        self.stage_run.on_event(event)
        self.scope.observer.stage_event(self.stage.key, event)

    def _relay(self, data: Mapping[str, Any]) -> None:
        """Copy log lines of the executor to the log of the run, but not one for each of a million bad rows."""
        self.relayed += 1
        if self.relayed <= _RELAYED:
            level = _LEVELS.get(str(data.get("level")), logging.INFO)
            self.stage_run.log.log(level, "%s", self.known.mask(str(data.get("message", ""))))
        if self.relayed == _RELAYED:
            self.stage_run.log.warning("further lines of the executor are in logs/stage.log only")

    def _report_placed(self, data: Mapping[str, Any]) -> None:
        """Report where the attempt is, and that it has started; an MLOC worker reports the start separately."""
        where = {"worker": str(data.get("worker") or self.worker), "protocol": str(data.get("protocol") or "ours")}
        begun = bool(data.get("begun", where["protocol"] == "ours"))
        if self.placed != where:
            self.placed = where
            self.stage_run.events.report("placed", self.attempt, **where, flow_run=data.get("flow_run"))
        elif not data.get("begun"):
            return
        if begun:
            self.stage_run.events.report("started", self.attempt, **where)

    def _ensure_placed(self) -> None:
        """Report a worker for an attempt that has events, though its dispatcher reported none."""
        if self.placed is None:
            self._report_placed({})

    @property
    def worker(self) -> str:
        """See `AttemptListener`."""
        if self.placed is not None:
            return str(self.placed["worker"])
        return self.scope.options.settings.worker_id or f"{platform.node()}:{os.getpid()}"

    def _report_failure(self, error: MlocError, delay: float | None) -> None:
        if isinstance(error, ExecutionError):
            self._ensure_placed()
        where = self.placed or {"worker": None, "protocol": None}
        message = self.known.mask(error.message)
        self.stage_run.events.report(
            "failed", self.attempt, **where, error=message, final=delay is None, next_retry_at=retry_time(delay)
        )

    def _log_failure(self, attempt: int, error: MlocError) -> None:
        self._log(f"attempt {attempt} failed: {error}", level=logging.WARNING)
        failure = error.failure if isinstance(error, ExecutionError) else None
        if failure is not None:
            for title, text in (("traceback", failure.traceback), ("last lines of the executor", failure.log_tail)):
                if text:
                    self.journal.line(f"{title}:\n{text}")

    def _log(self, text: str, *, level: int = logging.INFO) -> None:
        self.journal.line(text)
        self.stage_run.log.log(level, "%s", self.known.mask(text))

    def _outcome(self, manifest: Manifest, *, reused: bool = False) -> StageOutcome:
        return StageOutcome(
            key=self.stage.key,
            node=self.stage.node,
            task_id=self.task_id,
            status="DONE",
            result_path=str(self.work.directory / RESPONSES),
            summary=dict(manifest.summary),
            reused=reused,
        )
