"""One subscription for all tasks that a process has at MLOC workers."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from mloc_prefect.errors import StoreError
from mloc_prefect.mloc_workers.messages import parse_report
from mloc_prefect.store.interfaces import TASK_EVENTS, WORKER_EVENTS
from mloc_prefect.store.isolation import isolated

if TYPE_CHECKING:
    from mloc_prefect.mloc_workers.messages import WorkerReport
    from mloc_prefect.store.interfaces import Publisher

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 0.5


class EventSubscription:
    """Receives the reports of workers and distributes them to the sessions that follow a worker.

    Args:
        publisher: Publisher of the channels.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._followers: dict[str, list[asyncio.Queue[WorkerReport]]] = {}
        self._listener: asyncio.Task[None] | None = None
        self._worker_freed = asyncio.Event()
        self._listening = asyncio.Event()

    async def listening(self) -> None:
        """Return once the channels are subscribed; later messages are not missed.

        Raises:
            StoreError: There is no connection.
        """
        if self._listener is None or self._listener.done():
            self._listening.clear()
            self._listener = asyncio.create_task(self._listen(), name="MLOC workers")
            self._listener.add_done_callback(_log_failure)
        listener, listening = self._listener, asyncio.create_task(self._listening.wait())
        try:
            await asyncio.wait({listening, listener}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            listening.cancel()
        if listener.done():
            await listener  # raises what ended it; the next caller tries again

    async def close(self) -> None:
        """Stop to listen."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
            self._listener = None

    def follow(self, worker_id: str) -> asyncio.Queue[WorkerReport]:
        """Return a queue that gets the reports of one worker until `leave`."""
        queue: asyncio.Queue[WorkerReport] = asyncio.Queue()
        self._followers.setdefault(worker_id, []).append(queue)
        return queue

    def leave(self, worker_id: str, queue: asyncio.Queue[WorkerReport], *, free: bool) -> None:
        """End a `follow`; harmless when it has ended before. `free`: another session may take the worker now."""
        followers = self._followers.get(worker_id, [])
        if queue in followers:
            followers.remove(queue)
        if not followers:
            self._followers.pop(worker_id, None)
        if free:
            self._notify_waiting()

    @property
    def followed(self) -> set[str]:
        """Workers that a session of this process follows, and so has, or is about to take or leave."""
        return set(self._followers)

    async def wait(self, seconds: float) -> None:
        """Return when a worker became free, or after `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._worker_freed.wait()

    async def _listen(self) -> None:
        while True:
            try:
                async with self._publisher.listen(TASK_EVENTS, WORKER_EVENTS) as messages:
                    self._listening.set()
                    async for channel, message in messages:
                        with isolated(f"a message on {channel}"):
                            report = parse_report(channel, message)
                            if report is not None:
                                self._distribute(report)
            except StoreError as error:
                if not self._listening.is_set():
                    raise
                _log.warning("lost the subscription to MLOC workers, will retry: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)

    def _distribute(self, report: WorkerReport) -> None:
        for queue in self._followers.get(report.worker_id, ()):
            queue.put_nowait(report)
        if report.what != "began":
            self._notify_waiting()

    def _notify_waiting(self) -> None:
        self._worker_freed.set()
        self._worker_freed = asyncio.Event()


def _log_failure(listener: asyncio.Task[None]) -> None:
    """Log the error that ended a listener, also when no caller waits for it."""
    error = None if listener.cancelled() else listener.exception()
    if error is not None and not isinstance(error, StoreError):  # the caller gets that one
        _log.error("the subscription to MLOC workers failed, the next task will restart it: %r", error)
