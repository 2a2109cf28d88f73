"""`ShardingDispatcher`: one attempt as several, each a task of its own with a part of the rows. [protocol 2.7].

The task is divided when its first attempt finds room for more than one part. Every part is retried alone; the attempt
ends when all are there and their results are merged.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mloc_prefect.artifacts.delivery import AllowedHosts
from mloc_prefect.artifacts.layout import attempt_dirs, attempt_number, new_attempt_dir, open_task_dir, task_dir
from mloc_prefect.errors import DispatchError, ExecutionError
from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionResult
from mloc_prefect.orchestrate.commit import Committer, Computed
from mloc_prefect.orchestrate.fence import NoFence
from mloc_prefect.orchestrate.lost import WorkerStoppedError
from mloc_prefect.orchestrate.outcome import was_cancelled
from mloc_prefect.orchestrate.shard_merge import Finished, check_mergeable, merge
from mloc_prefect.orchestrate.shard_plan import begun_whole, digest_of, make_plan, read_plan
from mloc_prefect.orchestrate.shard_progress import ShardProgress
from mloc_prefect.orchestrate.shard_runs import ShardRuns
from mloc_prefect.plan.shards import MULTI, SHARDED_TYPES, Wish

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mloc_prefect.execution.protocol import EventKind
    from mloc_prefect.orchestrate.dispatch import StageDispatcher, StageJob
    from mloc_prefect.orchestrate.shard_plan import ShardPlan
    from mloc_prefect.settings import MlocSettings

    Capacity = Callable[[StageJob], Awaitable[int]]

_sleep = asyncio.sleep


@runtime_checkable
class HasCapacity(Protocol):
    """A dispatcher that knows how full its places are."""

    async def capacity(self, job: StageJob) -> int:
        """Return how many attempts like `job` could start at this moment."""


class ShardingDispatcher:
    """Divides attempts that ask for it (`spec.parallel.enabled`), and passes on all others.

    Args:
        inner: Runs whole attempts and shards.
        settings: Budget of retries, and the default of `parallel.max_shards`.
        root: Results root.
        capacity: How many attempts like one could start now; default: what `inner` says, else 1.
        stopped: Earlier starts of the root run that cost no attempt, see `RunScope`.
    """

    def __init__(
        self,
        inner: StageDispatcher,
        *,
        settings: MlocSettings,
        root: Path,
        capacity: Capacity | None = None,
        stopped: frozenset[int] = frozenset(),
    ) -> None:
        self._inner, self._settings, self._root, self._stopped = inner, settings, root, stopped
        self._capacity = capacity or (inner.capacity if isinstance(inner, HasCapacity) else _one)

    async def dispatch(self, job: StageJob, *, on_event: Callable[[ExecutionEvent], None]) -> ExecutionResult:
        """See `StageDispatcher`; a shard that failed for good fails the attempt for good."""
        plan = await self._plan(job)
        if plan is None:
            return await self._inner.dispatch(job, on_event=on_event)
        divided = _Divided(self._inner, self._settings, self._root, job, plan, on_event, stopped=self._stopped)
        return await divided.run()

    async def _plan(self, job: StageJob) -> ShardPlan | None:
        """Return how the task is divided, or None when it is done in one piece."""
        request, directory = job.request, Path(job.request.task_dir)
        if request.task_type.lower() not in SHARDED_TYPES:
            return None
        wish = Wish.of(request.spec, default_most=self._settings.max_auto_shards)
        if wish is None:
            return None
        digest = digest_of(request)
        known = await asyncio.to_thread(read_plan, directory, digest)
        if known is not None or await asyncio.to_thread(begun_whole, directory):
            return known
        count = wish.count(await self._capacity(job))
        if count < 2:
            return None
        return await asyncio.to_thread(make_plan, directory, request, digest, count, wish.rows)


@dataclass(slots=True)
class _Part:
    """One shard at work."""

    index: int
    task_id: str
    job: StageJob
    committer: Committer
    attempt: int = 0
    worker: str | None = None


class _Divided:
    """One attempt of a divided task."""

    def __init__(
        self,
        inner: StageDispatcher,
        settings: MlocSettings,
        root: Path,
        job: StageJob,
        plan: ShardPlan,
        on_event: Callable[[ExecutionEvent], None],
        *,
        stopped: frozenset[int],
    ) -> None:
        self._inner, self._settings, self._root, self._stopped = inner, settings, root, stopped
        self._job, self._plan, self._on_event = job, plan, on_event
        self._progress = ShardProgress(len(plan.task_ids), plan.rows)

    async def run(self) -> ExecutionResult:
        check_mergeable(self._job.request)
        self._emit("placed", {"worker": MULTI, "protocol": "ours", "flow_run": None})
        parts = [await asyncio.to_thread(self._part, index) for index in range(len(self._plan.task_ids))]
        runs = ShardRuns()
        tasks = [
            asyncio.create_task(runs.show(p.job.title, p.task_id, partial(self._shard, p)), name=p.job.title)
            for p in parts
        ]
        try:
            return await self._merged(tasks, runs)
        finally:
            await runs.close(hurried=isinstance(sys.exception(), asyncio.CancelledError))

    async def _merged(self, tasks: Sequence[asyncio.Task[Finished]], runs: ShardRuns) -> ExecutionResult:
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
        self._emit("phase", {"text": f"merging {len(tasks)} shards"})
        finished = [task.result() for task in tasks]
        path, summary = await asyncio.to_thread(merge, finished, self._job.request, self._plan.rows)
        reused = sum(int(f.manifest.summary.get("reused_rows") or 0) for f in finished)
        return ExecutionResult(str(path), summary=summary, reused_rows=reused, envelope=True)

    def _part(self, index: int) -> _Part:
        whole, total = self._job.request, len(self._plan.task_ids)
        task_id = self._plan.task_ids[index]
        directory = open_task_dir(self._root, task_id, task_dir(self._root, task_id))
        request = replace(whole, task_id=task_id, spec=self._plan.spec(index, whole), task_dir=str(directory))
        committer = Committer(
            directory=directory,
            task_id=task_id,
            name=whole.name,
            required=(),
            destination=None,
            allowed=AllowedHosts.of(self._settings, loopback=False),
            fence=NoFence(),  # the whole task has one; what a shard computes is the same whoever asked for it
        )
        job = replace(self._job, request=request, holder=f"{self._job.title} [{index + 1}/{total}]")
        return _Part(index, task_id, job, committer)

    async def _shard(self, part: _Part) -> Finished:
        """Run one shard to its end, with the retries that a stage has."""
        done = await asyncio.to_thread(part.committer.finished, self._digest(part))
        if done is not None:
            self._tell(part, "done", worker=done.summary.get("worker"), reused=True)
            self._emit("progress", self._progress.finished(part.index, done.summary))
            return Finished(part.task_id, part.committer.directory, done)
        limit, spent = self._settings.max_retries, self._spent(part)
        while True:
            try:
                return await self._attempt(part)
            except WorkerStoppedError as error:
                self._failed(part, error, 0.0)
            except (ExecutionError, DispatchError) as error:
                if was_cancelled(error):  # ends the whole task as cancelled; its parts are told of it there
                    raise
                final = spent >= limit or (isinstance(error, ExecutionError) and not error.retryable)
                spent += 1
                delay = min(self._settings.retry_base_delay * 2**spent, self._settings.retry_max_delay)
                self._failed(part, error, None if final else delay)
                if final:
                    message = f"Child shard failed: {part.task_id} ({part.index + 1} of {len(self._plan.task_ids)})"
                    failure = error.failure if isinstance(error, ExecutionError) else None
                    raise ExecutionError(
                        f"{message}: {error.message}", retryable=False, hint=error.hint, failure=failure
                    ) from error
                await _sleep(delay)

    async def _attempt(self, part: _Part) -> Finished:
        run_count = self._job.request.run_count
        directory = await asyncio.to_thread(new_attempt_dir, part.committer.directory, run_count, 1)
        part.attempt, part.worker = len(attempt_dirs(part.committer.directory)), None
        _, number = attempt_number(directory)
        job = replace(part.job, request=replace(part.job.request, attempt_dir=str(directory), attempt=number))
        result = await self._inner.dispatch(job, on_event=lambda event: self._heard(part, event))
        computed = Computed(
            spec_sha256=self._digest(part),
            attempt_dir=directory.name,
            attempt=number,
            run_count=run_count,
            path=result.path,
            summary={**result.summary, "reused_rows": result.reused_rows, "worker": part.worker},
            delivered=result.delivered,
        )
        manifest = await part.committer.commit(computed, worker_id=part.worker or "")
        self._tell(part, "done", worker=part.worker)
        return Finished(part.task_id, part.committer.directory, manifest)

    def _spent(self, part: _Part) -> int:
        """Return how many earlier starts of the root run were lost while this shard was at work: one attempt each."""
        starts = {attempt_number(path)[0] for path in attempt_dirs(part.committer.directory)} - self._stopped
        return min(sum(0 < start < self._job.request.run_count for start in starts), self._settings.max_retries)

    def _digest(self, part: _Part) -> str:
        return digest_of(part.job.request)

    def _heard(self, part: _Part, event: ExecutionEvent) -> None:
        """Pass on what a shard says: its progress as that of the whole, its places under its own name."""
        if event.kind == "progress":
            self._emit("progress", self._progress.add(part.index, event.data))
            return
        if event.kind in {"waiting", "placed"}:
            part.worker = event.data.get("worker", part.worker)
            self._tell(part, event.kind, **{"worker": part.worker, **event.data})
            return
        data, name = dict(event.data), f"shard {part.index + 1}/{len(self._plan.task_ids)}: "
        for key in ("text", "message"):
            if isinstance(data.get(key), str):
                data[key] = name + data[key]
        self._on_event(replace(event, data={**data, "shard": part.index}))

    def _failed(self, part: _Part, error: ExecutionError | DispatchError, delay: float | None) -> None:
        due = None if delay is None else datetime.fromtimestamp(time.time() + delay, UTC).isoformat()
        self._tell(part, "failed", worker=part.worker, error=error.message, final=delay is None, next_retry_at=due)
        number = f"{part.index + 1}/{len(self._plan.task_ids)}"
        then = "" if delay is None else f"; next attempt in {delay:g} s"
        self._emit("log", {"message": f"shard {number} failed: {error.message}{then}", "level": "warning"})

    def _tell(self, part: _Part, step: str, **facts: Any) -> None:
        """Say how a shard goes, in one event that names it."""
        named = {"task_id": part.task_id, "index": part.index, "total": len(self._plan.task_ids)}
        self._emit("shard", {"step": step, "part": named, "part_attempt": part.attempt, **facts})

    def _emit(self, kind: EventKind, data: dict[str, Any]) -> None:
        self._on_event(ExecutionEvent(kind, data, time.time()))


async def _one(_job: StageJob) -> int:
    return 1
