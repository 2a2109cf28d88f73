"""Runs attempts at one task until a result is committed; it alone owns retries (decision 14).

A stage is one such loop, and so is each shard of a divided stage.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from mloc_prefect.artifacts.layout import attempt_dirs, attempt_number, new_attempt_dir
from mloc_prefect.artifacts.transfer.outgoing import DeliveryError
from mloc_prefect.errors import ArtifactError, DispatchError, ExecutionError
from mloc_prefect.flow.commit import ComputedResult
from mloc_prefect.flow.outcome import was_cancelled
from mloc_prefect.flow.worker_loss import WorkerStoppedError
from mloc_prefect.process.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from mloc_prefect.artifacts.manifest import Manifest
    from mloc_prefect.errors import MlocError
    from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionResult
    from mloc_prefect.flow.commit import ResultCommitter
    from mloc_prefect.flow.dispatcher import StageDispatcher, StageJob
    from mloc_prefect.settings import MlocSettings


class AttemptListener(Protocol):
    """The task that the attempts are at; the loop notifies it of each step."""

    @property
    def worker(self) -> str:
        """Id of the worker of the current attempt, for the delivery of the result."""
        ...

    def attempt_started(self, attempt: int) -> None:
        """Attempt `attempt`, counted from 1 in this start of the run, begins."""

    def attempt_failed(self, attempt: int, error: MlocError, delay: float | None) -> None:
        """The attempt failed; the next one starts in `delay` seconds, or never (None)."""

    def on_event(self, event: ExecutionEvent) -> None:
        """The executor or the dispatcher of the attempt said something."""

    def summary_of(self, result: ExecutionResult) -> dict[str, Any]:
        """Return the facts that the manifest keeps of a result."""
        ...

    def result_ready(self, computed: ComputedResult, *, computed_before: bool) -> None:
        """A result is about to be committed; with `computed_before` only its delivery had failed."""

    def warn(self, text: str) -> None:
        """The result is committed, but something about it is not as asked for."""


@dataclass(frozen=True, kw_only=True)
class AttemptLoop:
    """The attempts at one task.

    Attributes:
        settings: How many retries, and how long to wait before each.
        dispatcher: Executes attempts.
        committer: Commits the result of the task.
        spec_sha256: Digest of the work, see `work_digest`.
        run_count: Number of this start of the run, from 1.
        stopped: Earlier starts that ended because their worker was stopped: they cost no retry.
        make_job: Makes the job of an attempt from its directory and its number.
        listener: Notified of each step.
        sleep: Waits before a retry.
    """

    settings: MlocSettings
    dispatcher: StageDispatcher
    committer: ResultCommitter
    spec_sha256: str
    run_count: int
    stopped: frozenset[int]
    make_job: Callable[[Path, int], StageJob]
    listener: AttemptListener
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def run_attempts(self) -> Manifest:
        """Return the manifest of the first attempt that succeeds.

        Raises:
            MlocError: The last attempt failed, or one was cancelled where it ran (see `was_cancelled`).
        """
        settings = self.settings
        retries, attempt = min(self._lost_starts(), settings.max_retries), 0
        while True:
            attempt += 1
            self.listener.attempt_started(attempt)
            try:
                return await self._run_attempt(attempt)
            except WorkerStoppedError as error:
                self.listener.attempt_failed(attempt, error, 0.0)
            except (ExecutionError, DispatchError, ArtifactError) as error:
                if was_cancelled(error):  # reported by the state of the run, as any cancellation
                    raise
                final = not _is_retryable(error) or retries >= settings.max_retries
                delay = Backoff(settings.retry_base_delay, settings.retry_max_delay).after(retries + 1)
                if isinstance(error, DeliveryError):
                    delay = max(delay, min(error.asked_to_wait, settings.retry_max_delay))
                self.listener.attempt_failed(attempt, error, None if final else delay)
                if final:
                    raise
                retries += 1
                await self.sleep(delay)

    async def _run_attempt(self, attempt: int) -> Manifest:
        computed = self.committer.kept(self.spec_sha256)
        computed_before = computed is not None
        if computed is None:
            computed = await self._compute(attempt)
            self.committer.keep(computed)
        self.listener.result_ready(computed, computed_before=computed_before)
        return await self.committer.commit(computed, worker_id=self.listener.worker, warn=self.listener.warn)

    async def _compute(self, attempt: int) -> ComputedResult:
        directory = new_attempt_dir(self.committer.directory, self.run_count, attempt)
        _, number = attempt_number(directory)
        result = await self.dispatcher.dispatch(self.make_job(directory, number), on_event=self.listener.on_event)
        return ComputedResult(
            spec_sha256=self.spec_sha256,
            attempt_dir=directory.name,
            attempt=number,
            run_count=self.run_count,
            path=result.path,
            summary=self.listener.summary_of(result),
            delivered=result.delivered,
            envelope=result.envelope,
        )

    def _lost_starts(self) -> int:
        """Return how many earlier starts of the run were lost during an attempt; each of them counts as one retry."""
        return len({start for start, _ in earlier_attempts(self.committer.directory, self.run_count)} - self.stopped)


def earlier_attempts(directory: Path, run_count: int) -> list[tuple[int, int]]:
    """Return start and number of all attempts at a task that starts of the run before `run_count` have begun."""
    attempts = map(attempt_number, attempt_dirs(directory))
    return [(start, number) for start, number in attempts if 0 < start < run_count]


def retry_time(delay: float | None) -> str | None:
    """Return when a retry after `delay` seconds starts (UTC, ISO 8601), or None when there is none."""
    return None if delay is None else datetime.fromtimestamp(time.time() + delay, UTC).isoformat()


def _is_retryable(error: MlocError) -> bool:
    if isinstance(error, (ExecutionError, DeliveryError)):
        return error.retryable
    return isinstance(error, DispatchError)
