"""The stage runner: resolve, validate again, dispatch, commit; it alone owns retries (architecture, decision 14)."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts.delivery import AllowedHosts, DeliveryError
from mloc_prefect.artifacts.layout import RESPONSES, attempt_dirs, attempt_number, new_attempt_dir
from mloc_prefect.errors import ArtifactError, DispatchError, ExecutionError, MlocError
from mloc_prefect.execution.protocol import ExecutionRequest
from mloc_prefect.orchestrate.commit import Committer, Computed
from mloc_prefect.orchestrate.engine import also_wanted
from mloc_prefect.orchestrate.lost import WorkerStoppedError
from mloc_prefect.orchestrate.outcome import StageOutcome, was_cancelled
from mloc_prefect.orchestrate.prepare import Work, prepare
from mloc_prefect.orchestrate.stagelog import StageLog
from mloc_prefect.orchestrate.tell import NullTeller

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from mloc_prefect.artifacts.manifest import Manifest
    from mloc_prefect.execution.protocol import ExecutionEvent
    from mloc_prefect.orchestrate.dispatch import StageDispatcher
    from mloc_prefect.orchestrate.fence import RunFence
    from mloc_prefect.orchestrate.observer import RunObserver
    from mloc_prefect.orchestrate.options import RunOptions
    from mloc_prefect.orchestrate.tell import Teller
    from mloc_prefect.plan.model import StagePlan

Logger = logging.Logger | logging.LoggerAdapter[Any]
_LEVELS = {"debug": logging.DEBUG, "warning": logging.WARNING, "error": logging.ERROR}
_RELAYED = 200  # lines of the executor in the log of the run, for each attempt; stage.log has all of them
_sleep = asyncio.sleep


@dataclass(frozen=True, kw_only=True)
class RunScope:
    """What all stages of one run share.

    Attributes:
        options: Options of the run.
        dispatcher: Who executes attempts.
        observer: Who is told.
        fence: Says whether this start of the run is current.
        run_count: Number of this start, from 1.
        task_ids: Task id of each stage key.
        stopped: Earlier starts that ended because their worker was stopped: they cost no attempt.
    """

    options: RunOptions
    dispatcher: StageDispatcher
    observer: RunObserver
    fence: RunFence
    run_count: int
    task_ids: Mapping[str, str]
    stopped: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """One run of one stage, as Prefect knows it.

    Attributes:
        log: Takes one line for each step.
        on_event: Called with each event of the executor.
        teller: Told how attempts go.
        cancel: Set when this stage alone is to end.
        flow_run_id: Its flow run, or None outside Prefect.
        begun: Attempts that earlier starts of the run are known to have begun.
    """

    log: Logger
    on_event: Callable[[ExecutionEvent], None] = lambda _: None
    teller: Teller = field(default_factory=NullTeller)
    cancel: asyncio.Event = field(default_factory=asyncio.Event)
    flow_run_id: str | None = None
    begun: int = 0


async def run_stage(stage: StagePlan, scope: RunScope, run: StageRun) -> StageOutcome:
    """Run one stage whose upstream stages are DONE, to its end.

    A result that is stored from outside meanwhile ends it as DONE with that result; `run.cancel`, or a cancellation
    from outside, ends it as CANCELLED.

    Raises:
        MlocError: The stage failed for good; the message is for the user.
    """
    work = await asyncio.to_thread(prepare, stage, scope.options, scope.task_ids)
    with StageLog(work.directory) as journal:
        return await _Runner(stage, scope, run, work, journal).run()


class _Runner:
    def __init__(self, stage: StagePlan, scope: RunScope, run: StageRun, work: Work, journal: StageLog) -> None:
        self.stage, self.scope, self.run_, self.work, self.journal = stage, scope, run, work, journal
        self.task_id = scope.task_ids[stage.key]
        self.attempt = 0  # counted over all starts of the run
        self.relayed = 0
        self.placed: dict[str, Any] | None = None
        self.committer = Committer(
            directory=work.directory,
            task_id=self.task_id,
            name=stage.name,
            required=work.artifacts,
            destination=work.destination,
            allowed=AllowedHosts.of(scope.options.settings, loopback=scope.options.loopback),
            fence=scope.fence,
            stage_run=run.flow_run_id,
        )

    async def run(self) -> StageOutcome:
        for warning in self.work.warnings:
            self._say(f"warning: {warning}", level=logging.WARNING)
        manifest = await asyncio.to_thread(self.committer.finished, self.work.sha256)
        if manifest is not None:
            self._say("finished before, nothing to do")
            return self._outcome(manifest, reused=True)
        return await self._until_an_end()

    async def _until_an_end(self) -> StageOutcome:
        """Return how the attempts end, or what comes first from outside: a result, or a cancellation.

        Also of the run on the pool that an attempt is: that is what people see at work there.
        """
        watch = self.scope.options.task_watch
        ending = asyncio.Event()  # from then on cancellations are of the stage's end, not of its worker's
        with also_wanted(ending.is_set):
            attempts = asyncio.ensure_future(self._attempts())
        completed = asyncio.ensure_future(watch.completed(self.task_id))
        stops = [asyncio.ensure_future(c) for c in (watch.cancelled(self.task_id), self.run_.cancel.wait())]
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
        self._say("cancelled")
        return StageOutcome(
            key=self.stage.key, node=self.stage.node, task_id=self.task_id, status="CANCELLED", error="cancelled"
        )

    async def _adopted(self) -> StageOutcome:
        self._say("completed from outside: the result that was stored there counts")
        return self._outcome(await self.committer.adopt(self.work.sha256, self.scope.run_count))

    async def _attempts(self) -> Manifest:
        settings = self.scope.options.settings
        retries, attempt, begun = min(self._spent(), settings.max_retries), 0, self._begun()
        while True:
            attempt += 1
            self.attempt, self.placed, self.relayed = begun + attempt, None, 0
            self.scope.observer.stage_started(self.stage.key, attempt)
            self._say(f"attempt {attempt} starts")
            try:
                return await self._attempt(attempt)
            except WorkerStoppedError as error:
                self._again(attempt, error, 0.0)
            except (ExecutionError, DispatchError, ArtifactError) as error:
                if was_cancelled(error):  # told by the state of the stage's run, as any cancellation
                    raise
                final = not _worth_a_retry(error) or retries >= settings.max_retries
                delay = min(settings.retry_base_delay * 2 ** (retries + 1), settings.retry_max_delay)
                self._again(attempt, error, None if final else delay)
                if final:
                    raise
                retries += 1
                await _sleep(delay)

    def _again(self, attempt: int, error: MlocError, delay: float | None) -> None:
        """Tell of a failed attempt, and of the seconds to the next one; None for none."""
        self._note_failure(attempt, error)
        self._tell_failure(error, delay)
        if delay is not None:
            self.scope.observer.stage_retry(self.stage.key, attempt, str(error), delay)
            self._say(f"next attempt in {delay:g} s")

    async def _attempt(self, attempt: int) -> Manifest:
        computed = self.committer.kept(self.work.sha256)
        if computed is None:
            computed = await self._compute(attempt)
            self.committer.keep(computed)
        else:
            self._say(f"the result of attempts/{computed.attempt_dir} is there, only its delivery is repeated")
        self._ensure_placed()
        warn = partial(self._say, level=logging.WARNING)
        return await self.committer.commit(computed, worker_id=self._worker, warn=warn)

    async def _compute(self, attempt: int) -> Computed:
        directory = new_attempt_dir(self.work.directory, self.scope.run_count, attempt)
        _, number = attempt_number(directory)
        result = await self.scope.dispatcher.dispatch(
            self.work.job(self._request(directory, number)), on_event=self._on_event
        )
        summary = dict(result.summary)
        if result.reused_rows:
            summary["reused_rows"] = result.reused_rows
        return Computed(
            spec_sha256=self.work.sha256,
            attempt_dir=directory.name,
            attempt=number,
            run_count=self.scope.run_count,
            path=result.path,
            summary=summary,
            delivered=result.delivered,
            envelope=result.envelope,
        )

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
                "allowed_hosts": ",".join(sorted(self.committer.allowed.hosts)),
                "loopback": options.loopback,
                "results_root": str(options.root),
                "base_url": settings.base_url,
                "allowed_rewards": settings.allowed_rewards,
                "strict": options.strict,
            },
        )

    def _on_event(self, event: ExecutionEvent) -> None:
        self.journal.event(event)
        if event.kind == "waiting":
            self.run_.teller.tell("waiting", self.attempt, reason=str(event.data.get("reason") or ""))
        elif event.kind == "placed":
            self._place(event.data)
        elif event.kind in {"progress", "metric"}:
            self._ensure_placed()
        elif event.kind == "shard":
            self.run_.teller.tell("shard", self.attempt, **event.data)
        elif event.kind == "log":
            self._relay(event.data)
        self.run_.on_event(event)
        self.scope.observer.stage_event(self.stage.key, event)

    def _relay(self, data: Mapping[str, Any]) -> None:
        """Let the log of the run have what the executor says, too, but not a line for each of a million bad rows."""
        self.relayed += 1
        if self.relayed <= _RELAYED:
            level = _LEVELS.get(str(data.get("level")), logging.INFO)
            self.run_.log.log(level, "%s", data.get("message", ""))
        if self.relayed == _RELAYED:
            self.run_.log.warning("further lines of the executor are in logs/stage.log only")

    def _place(self, data: Mapping[str, Any]) -> None:
        """Tell where the attempt is, and that it begins; with an original worker that is another time."""
        where = {"worker": str(data.get("worker") or self._worker), "protocol": str(data.get("protocol") or "ours")}
        begun = bool(data.get("begun", where["protocol"] == "ours"))
        if self.placed != where:
            self.placed = where
            self.run_.teller.tell("placed", self.attempt, **where, flow_run=data.get("flow_run"))
        elif not data.get("begun"):
            return
        if begun:
            self.run_.teller.tell("started", self.attempt, **where)

    def _ensure_placed(self) -> None:
        """An executor that speaks is somewhere, whether or not the dispatcher said where."""
        if self.placed is None:
            self._place({})

    @property
    def _worker(self) -> str:
        if self.placed is not None:
            return str(self.placed["worker"])
        return self.scope.options.settings.worker_id or f"{platform.node()}:{os.getpid()}"

    def _tell_failure(self, error: MlocError, delay: float | None) -> None:
        if isinstance(error, ExecutionError):
            self._ensure_placed()
        due = None if delay is None else datetime.fromtimestamp(time.time() + delay, UTC).isoformat()
        where = self.placed or {"worker": None, "protocol": None}
        self.run_.teller.tell(
            "failed", self.attempt, **where, error=error.message, final=delay is None, next_retry_at=due
        )

    def _spent(self) -> int:
        """Return how many earlier starts of the root run were lost while this stage was at work: one attempt each."""
        return len({start for start, _ in self._earlier()} - self.scope.stopped)

    def _begun(self) -> int:
        """Return how many attempts earlier starts have begun, so that the numbers go on."""
        return max(len(self._earlier()), self.run_.begun)

    def _earlier(self) -> list[tuple[int, int]]:
        attempts = map(attempt_number, attempt_dirs(self.work.directory))
        return [(start, number) for start, number in attempts if 0 < start < self.scope.run_count]

    def _note_failure(self, attempt: int, error: MlocError) -> None:
        self._say(f"attempt {attempt} failed: {error}", level=logging.WARNING)
        failure = error.failure if isinstance(error, ExecutionError) else None
        if failure is not None:
            for title, text in (("traceback", failure.traceback), ("last lines of the executor", failure.log_tail)):
                if text:
                    self.journal.line(f"{title}:\n{text}")

    def _say(self, text: str, *, level: int = logging.INFO) -> None:
        self.journal.line(text)
        self.run_.log.log(level, "%s", text)

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


def _worth_a_retry(error: MlocError) -> bool:
    if isinstance(error, (ExecutionError, DeliveryError)):
        return error.retryable
    return isinstance(error, DispatchError)
