"""Waiters at the lease book, for queues whose first run has no room yet: one waiter for each queue.

The book then keeps order among all who want the same devices (priority, arrival, and the patience after which a large
request keeps what it needs from small ones), and wakes the worker when it is the queue's turn.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mloc_prefect.errors import MlocError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from mloc_prefect.flow.dispatcher import InProcessDispatcher, LocalJob, StageJob
    from mloc_prefect.leases import Lease

logger = logging.getLogger("prefect.mloc.worker")


@dataclass(slots=True)
class _Waiter:
    """One waiter.

    Attributes:
        task: Ends with the lease.
        share: Engine whose tasks share that lease, or None: others of that engine will join it.
        poll: Poll in which a job of the queue asked for it last.
    """

    task: asyncio.Task[Lease]
    share: str | None
    poll: int


class LeaseWaiters:
    """Waiters by name of the queue.

    Jobs ask in the order of their queue, once in a poll. The waiter belongs to the first job that has no room; if that
    is cancelled or another worker takes it, the next job inherits the waiter.

    Args:
        dispatcher: Whose leases.
        wake: Called when it is the turn of a queue.
    """

    def __init__(self, dispatcher: InProcessDispatcher | None, wake: Callable[[], None]) -> None:
        self._dispatcher = dispatcher
        self._wake = wake
        self._by_queue: dict[str, _Waiter] = {}
        self._poll = 0

    async def lease_or_wait(self, queue: str, job: StageJob, *, waited: float = 0.0) -> Lease | None:
        """Return a lease for `job`, the first of its queue that has none, or wait for one at the lease book.

        Args:
            queue: Name of the queue.
            job: What is to run.
            waited: Seconds that it has waited already.

        Raises:
            DispatchError: The machine can never run it, or the book cannot be written.
        """
        assert self._dispatcher is not None
        local = self._dispatcher.choose_engine(job)
        waiter = self._by_queue.get(queue)
        if waiter is not None and waiter.poll == self._poll:  # of one before it
            return await self._dispatcher.try_lease(local)
        share = self._dispatcher.shared_engine(local)
        if waiter is not None and waiter.share != share:  # the book would let tasks of that engine join this job's
            await self._leave(self._by_queue.pop(queue))
            waiter = None
        if waiter is None:
            lease = await self._dispatcher.try_lease(local)
            if lease is None:
                self._wait(queue, self._dispatcher, local, waited)
            return lease
        waiter.poll = self._poll
        if not waiter.task.done():
            return None
        del self._by_queue[queue]
        try:
            return waiter.task.result()
        except MlocError as error:
            logger.warning("waiting for room for queue %s ended: %s", queue, error)
            return None

    async def begin_poll(self, queues: Collection[str]) -> None:
        """Begin a poll, and drop the waiters of all other queues: no run waits there any more."""
        self._poll += 1
        for name in [name for name in self._by_queue if name not in queues]:
            await self._leave(self._by_queue.pop(name))

    async def leave_all(self) -> None:
        """Drop all waiters."""
        await self.begin_poll(())

    def _wait(self, queue: str, dispatcher: InProcessDispatcher, local: LocalJob, waited: float) -> None:
        task = asyncio.create_task(dispatcher.wait_lease(local, waited=waited), name=f"lease for {queue}")
        task.add_done_callback(lambda task: None if task.cancelled() else self._wake())
        self._by_queue[queue] = _Waiter(task, dispatcher.shared_engine(local), self._poll)

    async def _leave(self, waiter: _Waiter) -> None:
        task = waiter.task
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled() and task.exception() is None and self._dispatcher is not None:
            await self._dispatcher.give_back(task.result())
