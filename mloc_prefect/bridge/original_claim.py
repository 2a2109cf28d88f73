"""A worker of the original protocol that one dispatcher has for itself, and what becomes of the task there.

The protocol knows no claim: two dispatchers that see the same worker IDLE would both send it a task. A lease in Redis
is taken first and kept until the worker is known to be done with the task; when its holder dies it runs out, and what
the worker's own hash says of its task keeps others away as long as it works.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mloc_prefect.bridge.original_messages import status_message, task_message
from mloc_prefect.bridge.ports import TASKS
from mloc_prefect.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.bridge.original_hub import Hub
    from mloc_prefect.bridge.original_messages import News
    from mloc_prefect.bridge.records import WorkerRecord
    from mloc_prefect.bridge.stores import Stores
    from mloc_prefect.orchestrate.dispatch import StageJob

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds.

    Attributes:
        acknowledge: A worker that said it was idle has begun by then, or the message was lost on its way.
        look: Between looks at the registry, which tell what messages that were missed would have told.
        lease: How long a claim outlives its holder.
        result: How long a result may take to become visible after the worker reported success.
        again: After a message that nobody received.
        close: How long the end of a dispatcher waits for workers that are just ending a task.
    """

    acknowledge: float = 10.0
    look: float = 2.0
    lease: float = 30.0
    result: float = 1.0
    again: float = 1.0
    close: float = 2.0


@dataclass(frozen=True, slots=True)
class End:
    """What became of a task at a worker.

    Attributes:
        how: `succeeded` or `failed` by its own word; `silent`: it is idle again, but its word was missed; `lost`: it
            never got the message; `vanished`: the worker went; `overdue`: the time is over and it still works.
        text: Why, in words.
    """

    how: Literal["succeeded", "failed", "silent", "lost", "vanished", "overdue"]
    text: str = ""


@dataclass(slots=True, kw_only=True)
class Claim:
    """One worker, one task. `take` it, `give` the task, `follow` it to its end, and `release` the worker in any case.

    Attributes:
        stores: Registry, messages and leases.
        hub: Hears the worker.
        worker: As it was when it was chosen.
        task_id: The task.
        holder: Name under which the lease is held.
        times: Waiting times.
        begun: Whether the worker has said that it works at the task.
    """

    stores: Stores
    hub: Hub
    worker: WorkerRecord
    task_id: str
    holder: str
    times: Times
    begun: bool = False
    _sent_at: str | None = None
    _keeper: asyncio.Task[None] | None = field(default=None, repr=False)
    _news: asyncio.Queue[News] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._news = self.hub.follow(self.worker_id)

    @property
    def worker_id(self) -> str:
        """Id of the worker."""
        return self.worker.worker_id

    async def take(self) -> bool:
        """Take the lease; returns False when another dispatcher has the worker.

        Raises:
            StoreError: There is no connection.
        """
        fence = await self.stores.leases.acquire(lease_name(self.worker_id), self.holder, ttl=self.times.lease)
        if fence is not None:
            self._keeper = asyncio.create_task(self._keep(), name=f"claim {self.worker_id}")
        return fence is not None

    async def release(self) -> None:
        """Give the worker up."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        try:
            await self.stores.leases.release(lease_name(self.worker_id), self.holder)
        except StoreError as error:
            _log.info("the claim on worker %s is left to run out: %s", self.worker_id, error)
        finally:
            self.hub.leave(self.worker_id, self._news, free=self._keeper is not None)

    async def give(self, job: StageJob) -> bool:
        """Send the task; returns False when nobody heard it, and then the worker is as before.

        Raises:
            StoreError: There is no connection.
        """
        message = task_message(job, self.worker_id)
        self._sent_at = message["dispatched_at"]
        # First the status, so that it cannot overwrite what a quick worker says of itself.
        await self.stores.workers.set_status(self.worker_id, "RUNNING")
        if not await self.stores.publisher.publish(TASKS, message):
            await self.stores.workers.set_status(self.worker_id, "IDLE")
            return False
        await self.stores.publisher.publish(*status_message(self.worker_id, "RUNNING"))
        return True

    async def set_idle(self) -> None:
        """Say that the worker is free, as the original does after a success; a worker that went stays gone."""
        with suppress(StoreError):
            await self.stores.workers.set_status(
                self.worker_id, "IDLE", messages=[status_message(self.worker_id, "IDLE")]
            )

    async def follow(self, timeout: float | None, on_begin: Callable[[], None] = lambda: None) -> End:
        """Return what becomes of the task.

        Args:
            timeout: Seconds that the task may run once it has begun, or None.
            on_begin: Called once when the worker has begun.
        """
        loop = asyncio.get_running_loop()
        unheard = loop.time() + self.times.acknowledge
        due, told = float("inf"), False
        while True:
            if self.begun and not told:
                told, due = True, loop.time() + (timeout or float("inf"))
                on_begin()
            end = await self._next()
            if end is not None:
                return end
            if loop.time() >= due:
                return End("overdue", f"did not end within {timeout:g} s")
            if not self.begun and loop.time() >= unheard:
                return End("lost", f"worker {self.worker_id} did not begin within {self.times.acknowledge:g} s")

    async def _next(self) -> End | None:
        try:
            async with asyncio.timeout(self.times.look):
                return self._hear(await self._news.get())
        except TimeoutError:
            return await self._look()

    def _hear(self, news: News) -> End | None:
        if news.what in {"gone", "registered"}:
            why = "has left" if news.what == "gone" else "was started again"
            return End("vanished", f"worker {self.worker_id} {why}")
        if news.task_id != self.task_id or self._late(news):
            return None
        if news.what == "began":
            self.begun = True
            return None
        if news.what == "succeeded":
            return End("succeeded")
        return End("failed", news.error or "worker failed") if news.what == "failed" else None

    def _late(self, news: News) -> bool:
        return None not in {news.dispatched_at, self._sent_at} and news.dispatched_at != self._sent_at

    async def _look(self) -> End | None:
        """Return what the registry tells: it also knows what was said while no connection was there."""
        try:
            record = await self.stores.workers.get(self.worker_id)
        except StoreError as error:
            _log.info("worker %s cannot be looked up: %s", self.worker_id, error)
            return None
        if record is None or record.stale:
            return End("vanished", f"worker {self.worker_id} has gone: no heartbeat")
        if record.started_at != self.worker.started_at:
            return End("vanished", f"worker {self.worker_id} was started again")
        self.begun = self.begun or works_at(record, self.task_id)
        # We said RUNNING for it, so IDLE is its own word.
        if record.status == "IDLE" and (self.begun or record.last_task == self.task_id):
            return End("silent", f"worker {self.worker_id} ended the task, but its message was missed")
        return None

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self.times.lease / 3)
            try:
                if await self.stores.leases.acquire(lease_name(self.worker_id), self.holder, ttl=self.times.lease):
                    continue
                _log.warning("the claim on worker %s has gone to another dispatcher", self.worker_id)
                return
            except StoreError as error:
                _log.warning("the claim on worker %s is not renewed: %s", self.worker_id, error)


def works_at(record: WorkerRecord, task_id: str | None = None) -> bool:
    """Return whether a worker says of itself that it is at work, at `task_id` if given."""
    if record.status != "RUNNING" or record.running is None or record.running == record.last_task:
        return False
    return task_id in {None, record.running}


def lease_name(worker_id: str) -> str:
    """Return the name of the lease on a worker of the original protocol."""
    return f"original:{worker_id}"
