"""Standing in line at the lease book for queues whose first run has no room yet: one place in line for each queue.

The book then keeps order among all who want the same devices (priority, arrival, and the patience after which a large
request keeps what it needs from small ones), and wakes the worker when it is the queue's turn.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from mloc_prefect.errors import MlocError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from mloc_prefect.orchestrate.dispatch import InProcessDispatcher, StageJob
    from mloc_prefect.worker.leases import Lease

logger = logging.getLogger("prefect.mloc.worker")


class Lines:
    """Places in line, by name of the queue.

    Args:
        dispatcher: Whose leases.
        wake: Called when it is the turn of a queue.
    """

    def __init__(self, dispatcher: InProcessDispatcher | None, wake: Callable[[], None]) -> None:
        self._dispatcher = dispatcher
        self._wake = wake
        self._places: dict[str, asyncio.Task[Lease]] = {}

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
        if place is None:
            lease = await self._dispatcher.try_lease(job)
            if lease is None:
                self._stand(queue, self._dispatcher, job, waited)
            return lease
        if not place.done():
            return None
        del self._places[queue]
        try:
            return place.result()
        except MlocError as error:
            logger.warning("waiting for room for queue %s ended: %s", queue, error)
            return None

    async def only(self, queues: Collection[str]) -> None:
        """Leave the lines of all other queues: nothing waits there any more."""
        for name in [name for name in self._places if name not in queues]:
            await self._leave(self._places.pop(name))

    async def leave(self) -> None:
        """Leave all lines."""
        await self.only(())

    def _stand(self, queue: str, dispatcher: InProcessDispatcher, job: StageJob, waited: float) -> None:
        place = asyncio.create_task(dispatcher.wait_lease(job, waited=waited), name=f"line for {queue}")
        place.add_done_callback(lambda task: None if task.cancelled() else self._wake())
        self._places[queue] = place

    async def _leave(self, place: asyncio.Task[Lease]) -> None:
        place.cancel()
        await asyncio.wait({place})
        if not place.cancelled() and place.exception() is None and self._dispatcher is not None:
            await self._dispatcher.give_back(place.result())
