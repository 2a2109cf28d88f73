"""Standing in line at the lease book for queues whose first run has no room yet: one place in line for each queue.

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

    from mloc_prefect.orchestrate.dispatch import InProcessDispatcher, StageJob
    from mloc_prefect.worker.leases import Lease

logger = logging.getLogger("prefect.mloc.worker")


@dataclass(slots=True)
class _Place:
    """One place in line.

    Attributes:
        task: Ends with the lease.
        share: Engine whose tasks share that lease, or None: others of that engine will join it.
        poll: Poll in which a job of the queue asked for it last.
    """

    task: asyncio.Task[Lease]
    share: str | None
    poll: int


class Lines:
    """Places in line, by name of the queue.

    Jobs ask in the order of their queue, once in a poll. The first that has no room has the place; when another one
    comes first, as that one was cancelled or another worker took it, the place goes to it.

    Args:
        dispatcher: Whose leases.
        wake: Called when it is the turn of a queue.
    """

    def __init__(self, dispatcher: InProcessDispatcher | None, wake: Callable[[], None]) -> None:
        self._dispatcher = dispatcher
        self._wake = wake
        self._places: dict[str, _Place] = {}
        self._poll = 0

    async def turn(self, queue: str, job: StageJob, *, waited: float = 0.0) -> Lease | None:
        """Return a lease for `job`, the first of its queue that has none; else stand in line for it.

        Args:
            queue: Name of the queue.
            job: What is to run.
            waited: Seconds that it has waited already.

        Raises:
            DispatchError: The machine can never run it, or the book cannot be written.
        """
        assert self._dispatcher is not None
        place = self._places.get(queue)
        if place is not None and place.poll == self._poll:  # of one before it
            return await self._dispatcher.try_lease(job)
        share = self._dispatcher.shared_engine(job)
        if place is not None and place.share != share:  # the book would let tasks of that engine join this job's
            await self._leave(self._places.pop(queue))
            place = None
        if place is None:
            lease = await self._dispatcher.try_lease(job)
            if lease is None:
                self._stand(queue, self._dispatcher, job, waited)
            return lease
        place.poll = self._poll
        if not place.task.done():
            return None
        del self._places[queue]
        try:
            return place.task.result()
        except MlocError as error:
            logger.warning("waiting for room for queue %s ended: %s", queue, error)
            return None

    async def only(self, queues: Collection[str]) -> None:
        """Begin a poll, and leave the lines of all other queues: nothing waits there any more."""
        self._poll += 1
        for name in [name for name in self._places if name not in queues]:
            await self._leave(self._places.pop(name))

    async def leave(self) -> None:
        """Leave all lines."""
        await self.only(())

    def _stand(self, queue: str, dispatcher: InProcessDispatcher, job: StageJob, waited: float) -> None:
        task = asyncio.create_task(dispatcher.wait_lease(job, waited=waited), name=f"line for {queue}")
        task.add_done_callback(lambda task: None if task.cancelled() else self._wake())
        self._places[queue] = _Place(task, dispatcher.shared_engine(job), self._poll)

    async def _leave(self, place: _Place) -> None:
        task = place.task
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled() and task.exception() is None and self._dispatcher is not None:
            await self._dispatcher.give_back(task.result())
