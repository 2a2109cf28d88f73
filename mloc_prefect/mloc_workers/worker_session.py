"""One MLOC worker that one dispatcher has for one task: its lease, the task message, and the end of the task.

The protocol has no claims: two dispatchers that see the same worker IDLE would both send it a task. So a lease in Redis
is acquired first and kept until the worker is done with the task; it expires when its holder dies, and then the task in
the worker's own hash keeps other dispatchers away.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mloc_prefect.errors import StoreError
from mloc_prefect.mloc_workers.messages import status_message, task_message
from mloc_prefect.store.interfaces import TASKS

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.flow.dispatcher import StageJob
    from mloc_prefect.mloc_workers.messages import WorkerReport
    from mloc_prefect.mloc_workers.subscription import EventSubscription
    from mloc_prefect.store.backends import Stores
    from mloc_prefect.store.records import WorkerRecord

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTimes:
    """Waiting times in seconds.

    Attributes:
        acknowledge: Within this time an idle worker begins; otherwise the message was lost.
        poll: Between two checks of the registry, which shows what missed messages said.
        lease: How long a lease outlives its holder.
        result: How long a result may take to become visible after the worker reported success.
        retry: After a message that no worker received.
        close: How long a dispatcher that closes waits for workers that are finishing a task.
    """

    acknowledge: float = 10.0
    poll: float = 2.0
    lease: float = 30.0
    result: float = 1.0
    retry: float = 1.0
    close: float = 2.0


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """How a task ended at a worker.

    Attributes:
        how: `succeeded` or `failed`: as the worker reported; `unreported`: it is idle again, but its report was missed;
            `undelivered`: it did not get the message; `lost`: the worker is lost; `timed_out`: it still works after
            the timeout.
        text: Why, as text.
    """

    how: Literal["succeeded", "failed", "unreported", "undelivered", "lost", "timed_out"]
    text: str = ""


@dataclass(slots=True, kw_only=True)
class WorkerSession:
    """One worker with one task: `acquire_lease`, `send_task`, `follow_task` to its end, and always `release`.

    Attributes:
        stores: Registry, messages and leases.
        subscription: Delivers the reports of the worker.
        worker: As it was when it was chosen.
        task_id: The task.
        holder: Name under which the lease is held.
        times: Waiting times.
        begun: Whether the worker has reported that it runs the task.
    """

    stores: Stores
    subscription: EventSubscription
    worker: WorkerRecord
    task_id: str
    holder: str
    times: SessionTimes
    begun: bool = False
    _sent_at: str | None = None
    _renewal: asyncio.Task[None] | None = field(default=None, repr=False)
    _reports: asyncio.Queue[WorkerReport] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._reports = self.subscription.follow(self.worker_id)

    @property
    def worker_id(self) -> str:
        """Id of the worker."""
        return self.worker.worker_id

    async def acquire_lease(self) -> bool:
        """Acquire the lease; False when another dispatcher has the worker.

        Raises:
            StoreError: There is no connection.
        """
        fence = await self.stores.leases.acquire(lease_name(self.worker_id), self.holder, ttl=self.times.lease)
        if fence is not None:
            self._renewal = asyncio.create_task(self._renew_lease(), name=f"claim {self.worker_id}")
        return fence is not None

    async def release(self) -> None:
        """Release the lease and stop to follow the worker."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)
        try:
            await self.stores.leases.release(lease_name(self.worker_id), self.holder)
        except StoreError as error:
            _log.info("could not release the lease on worker %s, it will expire: %s", self.worker_id, error)
        finally:
            self.subscription.leave(self.worker_id, self._reports, free=self._renewal is not None)

    async def send_task(self, job: StageJob) -> bool:
        """Send the task; False when no worker received it; the status of the worker is then restored.

        Raises:
            StoreError: There is no connection.
        """
        message = task_message(job, self.worker_id)
        self._sent_at = message["dispatched_at"]
        # The status comes first, so that it cannot overwrite the report of a fast worker.
        await self.stores.workers.set_status(self.worker_id, "RUNNING")
        if not await self.stores.publisher.publish(TASKS, message):
            await self.stores.workers.set_status(self.worker_id, "IDLE")
            return False
        await self.stores.publisher.publish(*status_message(self.worker_id, "RUNNING"))
        return True

    async def set_idle(self) -> None:
        """Set the worker to IDLE, as MLOC does after a success; the record of a lost worker is not restored."""
        with suppress(StoreError):
            await self.stores.workers.set_status(
                self.worker_id, "IDLE", messages=[status_message(self.worker_id, "IDLE")]
            )

    async def follow_task(self, timeout: float | None, on_begin: Callable[[], None] = lambda: None) -> SessionEnd:
        """Follow the task and return how it ends.

        Args:
            timeout: Seconds that the task may run after it has begun, or None.
            on_begin: Called once when the worker has begun.
        """
        loop = asyncio.get_running_loop()
        begin_by = loop.time() + self.times.acknowledge
        due, reported = float("inf"), False
        while True:
            if self.begun and not reported:
                reported, due = True, loop.time() + (timeout or float("inf"))
                on_begin()
            end = await self._next_end()
            if end is not None:
                return end
            if loop.time() >= due:
                return SessionEnd("timed_out", f"did not end within {timeout:g} s")
            if not self.begun and loop.time() >= begin_by:
                return SessionEnd(
                    "undelivered", f"worker {self.worker_id} did not begin within {self.times.acknowledge:g} s"
                )

    async def _next_end(self) -> SessionEnd | None:
        try:
            async with asyncio.timeout(self.times.poll):
                return self._apply_report(await self._reports.get())
        except TimeoutError:
            return await self._check_registry()

    def _apply_report(self, report: WorkerReport) -> SessionEnd | None:
        if report.what in {"stopped", "registered"}:
            why = "has left" if report.what == "stopped" else "was started again"
            return SessionEnd("lost", f"worker {self.worker_id} {why}")
        if report.task_id != self.task_id or self._is_outdated(report):
            return None
        if report.what == "began":
            self.begun = True
            return None
        if report.what == "succeeded":
            return SessionEnd("succeeded")
        return SessionEnd("failed", report.error or "worker failed") if report.what == "failed" else None

    def _is_outdated(self, report: WorkerReport) -> bool:
        return None not in {report.dispatched_at, self._sent_at} and report.dispatched_at != self._sent_at

    async def _check_registry(self) -> SessionEnd | None:
        """Return the end that the registry shows, which also covers reports that were missed."""
        try:
            record = await self.stores.workers.get(self.worker_id)
        except StoreError as error:
            _log.info("could not check worker %s, will retry: %s", self.worker_id, error)
            return None
        if record is None or record.stale:
            return SessionEnd("lost", f"worker {self.worker_id} is lost: no heartbeat")
        if record.started_at != self.worker.started_at:
            return SessionEnd("lost", f"worker {self.worker_id} was started again")
        self.begun = self.begun or works_at(record, self.task_id)
        # This dispatcher set RUNNING, so the worker itself set IDLE.
        if record.status == "IDLE" and (self.begun or record.last_task == self.task_id):
            return SessionEnd("unreported", f"worker {self.worker_id} ended the task, but its message was missed")
        return None

    async def _renew_lease(self) -> None:
        while True:
            await asyncio.sleep(self.times.lease / 3)
            try:
                if await self.stores.leases.acquire(lease_name(self.worker_id), self.holder, ttl=self.times.lease):
                    continue
                _log.warning("the lease on worker %s was taken by another dispatcher", self.worker_id)
                return
            except StoreError as error:
                _log.warning("could not renew the lease on worker %s, will retry: %s", self.worker_id, error)


def works_at(record: WorkerRecord, task_id: str | None = None) -> bool:
    """Return whether a worker reports that it runs a task, `task_id` if given."""
    if record.status != "RUNNING" or record.running is None or record.running == record.last_task:
        return False
    return task_id in {None, record.running}


def lease_name(worker_id: str) -> str:
    """Return the name of the lease on an MLOC worker."""
    return f"original:{worker_id}"
