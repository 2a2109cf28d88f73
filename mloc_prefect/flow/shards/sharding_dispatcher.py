"""`ShardingDispatcher`: runs one attempt as several shards, each a task of its own with some rows. [protocol 2.7].

The task is divided when its first attempt finds room for more than one shard. Every shard is an attempt loop of its
own; the attempt at the whole task ends when all shards are committed and their results are merged.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mloc_prefect.artifacts.layout import attempt_dirs, open_task_dir, task_dir
from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts
from mloc_prefect.errors import DispatchError, ExecutionError
from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionResult
from mloc_prefect.flow.attempt_loop import AttemptLoop, retry_time
from mloc_prefect.flow.commit import ResultCommitter
from mloc_prefect.flow.fencing import NoFence
from mloc_prefect.flow.outcome import was_cancelled
from mloc_prefect.flow.shards.shard_merge import FinishedShard, check_mergeable, merge
from mloc_prefect.flow.shards.shard_plan import begun_whole, make_plan, read_plan
from mloc_prefect.flow.shards.shard_progress import ShardProgress
from mloc_prefect.flow.shards.shard_runs import ShardRuns
from mloc_prefect.flow.stage_inputs import work_digest
from mloc_prefect.plan.shard_ranges import MULTI, ShardRequest
from mloc_prefect.tasks.registry import task_type

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mloc_prefect.errors import MlocError
    from mloc_prefect.execution.protocol import EventKind
    from mloc_prefect.flow.commit import ComputedResult
    from mloc_prefect.flow.dispatcher import StageDispatcher, StageJob
    from mloc_prefect.flow.shards.shard_plan import ShardPlan
    from mloc_prefect.settings import MlocSettings

    Capacity = Callable[[StageJob], Awaitable[int]]


@runtime_checkable
class HasCapacity(Protocol):
    """A dispatcher that knows how much room its machines have."""

    async def capacity(self, job: StageJob) -> int:
        """Return how many attempts like `job` could start at this moment."""


@dataclass(frozen=True, kw_only=True)
class ShardScope:
    """What all shards of one workflow run share.

    Attributes:
        dispatcher: Executes attempts at shards, and at tasks that are not divided.
        settings: Number of retries, and the default of `parallel.max_shards`.
        root: Results root.
        stopped: Earlier starts of the workflow run that cost no attempt, see `RunScope`.
        sleep: Waits before a retry.
    """

    dispatcher: StageDispatcher
    settings: MlocSettings
    root: Path
    stopped: frozenset[int] = frozenset()
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class ShardingDispatcher:
    """Divides attempts that ask for it (`spec.parallel.enabled`), and passes on all others.

    Args:
        scope: What all shards share.
        capacity: How many attempts like one could start now; default: what the dispatcher says, else 1.
    """

    def __init__(self, scope: ShardScope, *, capacity: Capacity | None = None) -> None:
        self._scope, inner = scope, scope.dispatcher
        self._capacity = capacity or (inner.capacity if isinstance(inner, HasCapacity) else _one)

    async def dispatch(self, job: StageJob, *, on_event: Callable[[ExecutionEvent], None]) -> ExecutionResult:
        """See `StageDispatcher`; a shard whose last attempt failed makes the error of the whole attempt final."""
        plan = await self._plan(job)
        if plan is None:
            return await self._scope.dispatcher.dispatch(job, on_event=on_event)
        return await _DividedAttempt(self._scope, job, plan, on_event).run_shards()

    async def _plan(self, job: StageJob) -> ShardPlan | None:
        """Return how the task is divided, or None when it runs in one piece."""
        request, directory = job.request, Path(job.request.task_dir)
        kind, most = task_type(request.task_type), self._scope.settings.max_auto_shards
        wish = ShardRequest.of(kind, request.spec, default_most=most)
        if wish is None:
            return None
        digest = work_digest(request.task_type, request.spec, request.upstream)
        known = await asyncio.to_thread(read_plan, directory, digest)
        if known is not None or await asyncio.to_thread(begun_whole, directory):
            return known
        count = wish.count(await self._capacity(job))
        if count < 2:
            return None
        return await asyncio.to_thread(make_plan, directory, request, digest, count, wish.rows)


class _DividedAttempt:
    """One attempt at a divided task."""

    def __init__(
        self, scope: ShardScope, job: StageJob, plan: ShardPlan, on_event: Callable[[ExecutionEvent], None]
    ) -> None:
        self.scope, self.job, self.plan, self.on_event = scope, job, plan, on_event
        self.progress = ShardProgress(len(plan.task_ids), plan.rows)

    async def run_shards(self) -> ExecutionResult:
        check_mergeable(self.job.request)
        self.emit("placed", {"worker": MULTI, "protocol": "ours", "flow_run": None})
        shards = [await asyncio.to_thread(_Shard, self, index) for index in range(len(self.plan.task_ids))]
        runs = ShardRuns()
        tasks = [asyncio.create_task(runs.show(s.job.title, s.task_id, s.run_to_end), name=s.job.title) for s in shards]
        try:
            return await self._merged(tasks, runs)
        finally:
            await runs.close(hurried=isinstance(sys.exception(), asyncio.CancelledError))

    async def _merged(self, tasks: Sequence[asyncio.Task[FinishedShard]], runs: ShardRuns) -> ExecutionResult:
        """Wait for all shards, or for the first that fails, and merge them."""
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            broken = next((e for t in tasks if t.done() and not t.cancelled() and (e := t.exception())), None)
            if broken is not None:
                runs.given_up = True
                raise broken
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self.emit("phase", {"text": f"merging {len(tasks)} shards"})
        finished = [task.result() for task in tasks]
        path, summary = await asyncio.to_thread(merge, finished, self.job.request, self.plan.rows)
        reused = sum(int(f.manifest.summary.get("reused_rows") or 0) for f in finished)
        return ExecutionResult(str(path), summary=summary, reused_rows=reused, envelope=True)

    def emit(self, kind: EventKind, data: dict[str, Any]) -> None:
        self.on_event(ExecutionEvent(kind, data, time.time()))


class _Shard:
    """One shard of an attempt: a task of its own, with its own attempts; an `AttemptListener`."""

    def __init__(self, whole: _DividedAttempt, index: int) -> None:
        scope, request, total = whole.scope, whole.job.request, len(whole.plan.task_ids)
        self.whole, self.index, self.total = whole, index, total
        self.task_id = whole.plan.task_ids[index]
        self.attempt = 0
        self.placed_at: str | None = None
        self.directory = open_task_dir(scope.root, self.task_id, task_dir(scope.root, self.task_id))
        own = replace(request, task_id=self.task_id, spec=whole.plan.spec(index, request), task_dir=str(self.directory))
        self.job = replace(whole.job, request=own, holder=f"{whole.job.title} [{index + 1}/{total}]")
        self.loop = AttemptLoop(
            settings=scope.settings,
            dispatcher=scope.dispatcher,
            committer=ResultCommitter(
                directory=self.directory,
                task_id=self.task_id,
                name=request.name,
                required=(),
                destination=None,
                allowed=AllowedHosts.of(scope.settings, loopback=False),
                fence=NoFence(),  # the whole task has one; a shard's result is the same for every start of the run
            ),
            spec_sha256=work_digest(own.task_type, own.spec, own.upstream),
            run_count=request.run_count,
            stopped=scope.stopped,
            make_job=self._job_of,
            listener=self,
            sleep=scope.sleep,
        )

    async def run_to_end(self) -> FinishedShard:
        """Return the committed shard, after as many attempts as it takes.

        Raises:
            MlocError: The last attempt failed, or one was cancelled where it ran; not retryable.
        """
        done = await asyncio.to_thread(self.loop.committer.finished, self.loop.spec_sha256)
        if done is not None:
            self._report("done", worker=done.summary.get("worker"), reused=True)
            self.whole.emit("progress", self.whole.progress.finished(self.index, done.summary))
            return FinishedShard(self.task_id, self.directory, done)
        try:
            manifest = await self.loop.run_attempts()
        except (ExecutionError, DispatchError) as error:
            if was_cancelled(error):  # it ends the whole task as cancelled, which reports that for its shards, too
                raise
            failure = error.failure if isinstance(error, ExecutionError) else None
            message = f"Child shard failed: {self.task_id} ({self.index + 1} of {self.total}): {error.message}"
            raise ExecutionError(message, retryable=False, hint=error.hint, failure=failure) from error
        self._report("done", worker=self.placed_at)
        return FinishedShard(self.task_id, self.directory, manifest)

    @property
    def worker(self) -> str:
        """See `AttemptListener`."""
        return self.placed_at or ""

    def attempt_started(self, attempt: int) -> None:
        """See `AttemptListener`; the number that is reported counts the attempts of all starts of the run."""
        self.attempt, self.placed_at = len(attempt_dirs(self.directory)) + 1, None

    def attempt_failed(self, attempt: int, error: MlocError, delay: float | None) -> None:
        """See `AttemptListener`."""
        self._report(
            "failed", worker=self.placed_at, error=error.message, final=delay is None, next_retry_at=retry_time(delay)
        )
        then = "" if delay is None else f"; next attempt in {delay:g} s"
        self.warn(f"shard {self.index + 1}/{self.total} failed: {error.message}{then}")

    def on_event(self, event: ExecutionEvent) -> None:
        """Pass on the events of a shard: its progress as that of the whole, its workers under its own name."""
        if event.kind == "progress":
            self.whole.emit("progress", self.whole.progress.add(self.index, event.data))
            return
        if event.kind in {"waiting", "placed"}:
            self.placed_at = event.data.get("worker", self.placed_at)
            self._report(event.kind, **{"worker": self.placed_at, **event.data})
            return
        data, name = dict(event.data), f"shard {self.index + 1}/{self.total}: "
        for key in ("text", "message"):
            if isinstance(data.get(key), str):
                data[key] = name + data[key]
        self.whole.on_event(replace(event, data={**data, "shard": self.index}))

    def summary_of(self, result: ExecutionResult) -> dict[str, Any]:
        """See `AttemptListener`."""
        return {**result.summary, "reused_rows": result.reused_rows, "worker": self.placed_at}

    def result_ready(self, computed: ComputedResult, *, computed_before: bool) -> None:
        """See `AttemptListener`; a shard has no destination, so its delivery cannot fail."""

    def warn(self, text: str) -> None:
        """See `AttemptListener`."""
        self.whole.emit("log", {"message": text, "level": "warning"})

    def _job_of(self, directory: Path, number: int) -> StageJob:
        return replace(self.job, request=replace(self.job.request, attempt_dir=str(directory), attempt=number))

    def _report(self, step: str, **facts: Any) -> None:
        """Report a step of the shard, in one event that names it."""
        named = {"task_id": self.task_id, "index": self.index, "total": self.total}
        self.whole.emit("shard", {"step": step, "part": named, "part_attempt": self.attempt, **facts})


async def _one(_job: StageJob) -> int:
    return 1
