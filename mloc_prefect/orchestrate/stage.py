"""The stage runner: resolve, validate again, dispatch, commit; it alone owns retries (architecture, decision 14)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import platform
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts import atomic
from mloc_prefect.artifacts.delivery import AllowedHosts, DeliveryError, HttpDestination
from mloc_prefect.artifacts.layout import (
    RESPONSES,
    attempt_dirs,
    attempt_number,
    destination_dir,
    new_attempt_dir,
    open_task_dir,
    task_dir,
)
from mloc_prefect.artifacts.manifest import read_manifest
from mloc_prefect.errors import ArtifactError, DispatchError, ExecutionError, MlocError
from mloc_prefect.execution.protocol import ExecutionRequest
from mloc_prefect.orchestrate.commit import Committer, Computed
from mloc_prefect.orchestrate.dispatch import StageJob
from mloc_prefect.orchestrate.outcome import StageOutcome
from mloc_prefect.orchestrate.stagelog import StageLog
from mloc_prefect.plan.resolve import resolve_stage, with_result_level
from mloc_prefect.plan.resources import request_of
from mloc_prefect.tasks.checks import check
from mloc_prefect.tasks.registry import task_type

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from mloc_prefect.artifacts.manifest import Manifest
    from mloc_prefect.execution.protocol import ExecutionEvent
    from mloc_prefect.orchestrate.dispatch import StageDispatcher
    from mloc_prefect.orchestrate.fence import RunFence
    from mloc_prefect.orchestrate.observer import RunObserver
    from mloc_prefect.orchestrate.options import RunOptions
    from mloc_prefect.plan.model import StagePlan

Logger = logging.Logger | logging.LoggerAdapter[Any]
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
    """

    options: RunOptions
    dispatcher: StageDispatcher
    observer: RunObserver
    fence: RunFence
    run_count: int
    task_ids: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """A resolved stage."""

    spec: dict[str, Any]
    upstream: dict[str, Any]
    warnings: tuple[str, ...]
    sha256: str
    directory: Path
    job: Callable[[ExecutionRequest], StageJob]
    destination: HttpDestination | None
    artifacts: list[str] = field(default_factory=list)


async def run_stage(
    stage: StagePlan,
    scope: RunScope,
    *,
    log: Logger,
    on_event: Callable[[ExecutionEvent], None] = lambda _: None,
) -> StageOutcome:
    """Run one stage whose upstream stages are DONE, to its end.

    Args:
        stage: The stage.
        scope: What the run's stages share.
        log: Takes one line for each step.
        on_event: Called with each event of the executor.

    Raises:
        MlocError: The stage failed for good; the message is for the user.
    """
    work = await asyncio.to_thread(_prepare, stage, scope)
    with StageLog(work.directory) as journal:
        return await _StageRun(stage, scope, work, journal, log, on_event).run()


class _StageRun:
    def __init__(
        self,
        stage: StagePlan,
        scope: RunScope,
        work: _Work,
        journal: StageLog,
        log: Logger,
        on_event: Callable[[ExecutionEvent], None],
    ) -> None:
        self.stage, self.scope, self.work = stage, scope, work
        self.journal, self.log, self.forward = journal, log, on_event
        self.task_id = scope.task_ids[stage.key]
        self.committer = Committer(
            directory=work.directory,
            task_id=self.task_id,
            name=stage.name,
            required=work.artifacts,
            destination=work.destination,
            allowed=AllowedHosts.of(scope.options.settings, loopback=scope.options.loopback),
            fence=scope.fence,
            worker_id=f"{platform.node()}:{os.getpid()}",
        )

    async def run(self) -> StageOutcome:
        for warning in self.work.warnings:
            self._say(f"warning: {warning}", level=logging.WARNING)
        manifest = await asyncio.to_thread(self.committer.finished, self.work.sha256)
        if manifest is not None:
            self._say("finished before, nothing to do")
            return self._outcome(manifest, reused=True)
        manifest = await self._attempts()
        return self._outcome(manifest)

    async def _attempts(self) -> Manifest:
        settings = self.scope.options.settings
        retries, attempt = min(self._spent(), settings.max_retries), 0
        while True:
            attempt += 1
            self.scope.observer.stage_started(self.stage.key, attempt)
            self._say(f"attempt {attempt} starts")
            try:
                return await self._attempt(attempt)
            except (ExecutionError, DispatchError, ArtifactError) as error:
                self._note_failure(attempt, error)
                if not _worth_a_retry(error) or retries >= settings.max_retries:
                    raise
                retries += 1
                delay = min(settings.retry_base_delay * 2**retries, settings.retry_max_delay)
                self.scope.observer.stage_retry(self.stage.key, attempt, str(error), delay)
                self._say(f"next attempt in {delay:g} s")
                await _sleep(delay)

    async def _attempt(self, attempt: int) -> Manifest:
        computed = self.committer.kept(self.work.sha256)
        if computed is None:
            computed = await self._compute(attempt)
            self.committer.keep(computed)
        else:
            self._say(f"the result of attempts/{computed.attempt_dir} is there, only its delivery is repeated")
        return await self.committer.commit(computed)

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
            },
        )

    def _on_event(self, event: ExecutionEvent) -> None:
        self.journal.event(event)
        self.forward(event)
        self.scope.observer.stage_event(self.stage.key, event)

    def _spent(self) -> int:
        """Return how many earlier starts of the root run ended while this stage was at work: one attempt each."""
        starts = {attempt_number(p)[0] for p in attempt_dirs(self.work.directory)}
        return sum(0 < start < self.scope.run_count for start in starts)

    def _note_failure(self, attempt: int, error: MlocError) -> None:
        self._say(f"attempt {attempt} failed: {error}", level=logging.WARNING)
        failure = error.failure if isinstance(error, ExecutionError) else None
        if failure is not None:
            for title, text in (("traceback", failure.traceback), ("last lines of the executor", failure.log_tail)):
                if text:
                    self.journal.line(f"{title}:\n{text}")

    def _say(self, text: str, *, level: int = logging.INFO) -> None:
        self.journal.line(text)
        self.log.log(level, "%s", text)

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


def _prepare(stage: StagePlan, scope: RunScope) -> _Work:
    options = scope.options
    outside = _external_ids(stage, options.root, scope.task_ids)
    ids = {**outside, **scope.task_ids}
    names = dict.fromkeys((*stage.upstream, *(r.stage for r in stage.references if r.stage), *outside))
    results = {n: _result_of(n, options.root, ids) for n in names if n in ids}
    known = {n: r for n, r in results.items() if r is not None}
    resolved = resolve_stage(stage, known, ids, env=_allowed_env(options), params=options.params)
    spec = resolved.spec
    kind = task_type(stage.task_type)
    checked = check(kind.model, spec, resolved=True)
    bad = [p for p in checked.problems if p.severity == "error"]
    if bad:
        text = "; ".join(f"{_dotted(('spec', *p.path))}: {p.message}" for p in bad)
        raise ExecutionError(f"invalid once its references are filled in: {text}", retryable=False)
    output = spec.get("output") or {}
    destination = output.get("destination") or {}
    http = HttpDestination.of(destination)
    if http is not None:
        AllowedHosts.of(options.settings, loopback=options.loopback).check(http.url)
    task_id = scope.task_ids[stage.key]
    target = destination_dir(options.root, task_id, destination, allow_outside=options.settings.allow_outside_results)
    needs_upstream = (spec.get("data") or {}).get("type") == "graph_template" if _is_map(spec.get("data")) else False
    upstream = known if needs_upstream else {}
    timeout = getattr(checked.spec, "timeout_sec", None)

    def job(request: ExecutionRequest) -> StageJob:
        return StageJob(
            request=request,
            executor=kind.executor(checked.spec),
            engine_options=dict(kind.engine_options(checked.spec)),
            resources=request_of(stage.task_type, spec),
            timeout=timeout,
            stall=options.settings.stall_seconds,
            holder=stage.name,
        )

    return _Work(
        spec=spec,
        upstream=upstream,
        warnings=resolved.warnings,
        sha256=_digest(stage.task_type, spec, upstream),
        directory=open_task_dir(options.root, task_id, target),
        job=job,
        destination=http,
        artifacts=[str(a) for a in output.get("artifacts") or []],
    )


def _external_ids(stage: StagePlan, root: Path, own: Mapping[str, str]) -> dict[str, str]:
    """Return the ids of the tasks of other submissions in `dependsOn` by the names that references use."""
    manifests = ((task_id, read_manifest(task_dir(root, task_id))) for task_id in stage.external)
    named = {manifest.short_name: task_id for task_id, manifest in manifests if manifest is not None}
    return {name: task_id for name, task_id in named.items() if name and name not in own}


def _result_of(key: str, root: Path, task_ids: Mapping[str, str]) -> Any:
    try:
        return with_result_level(atomic.read_json(task_dir(root, task_ids[key]) / RESPONSES))
    except FileNotFoundError:
        return None


def _allowed_env(options: RunOptions) -> dict[str, str]:
    names = [n.strip() for n in options.settings.allowed_env.split(",")]
    return {n: os.environ[n] for n in names if n in os.environ}


def _digest(kind: str, spec: Mapping[str, Any], upstream: Mapping[str, Any]) -> str:
    """Return what makes two runs of a stage the same: its type, its resolved spec, and the results its prompt reads."""
    text = json.dumps([kind, spec, upstream], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _worth_a_retry(error: MlocError) -> bool:
    if isinstance(error, (ExecutionError, DeliveryError)):
        return error.retryable
    return isinstance(error, DispatchError)


def _is_map(value: Any) -> bool:
    return isinstance(value, dict)


def _dotted(path: tuple[str | int, ...]) -> str:
    from mloc_prefect.spec.positions import path_text

    return path_text(path)
