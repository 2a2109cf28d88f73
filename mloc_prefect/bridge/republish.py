"""`mloc run` on a site with a Redis: its own run gets records and messages for as long as it lasts.

Another bridge may follow the same server; both then take the same steps, of which each is taken once. A bridge on
another server does not know the run, and leaves its records alone as long as this process says that it goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx
from prefect.client.orchestration import get_client

from mloc_prefect.bridge.events import SocketSource
from mloc_prefect.bridge.keeper import Keeper
from mloc_prefect.bridge.rebuild import Rebuilder
from mloc_prefect.bridge.reconcile import Reconciler
from mloc_prefect.bridge.runs import PrefectRuns, Tags
from mloc_prefect.bridge.service import Follower
from mloc_prefect.bridge.stores import open_stores
from mloc_prefect.bridge.watch import StoreWatch
from mloc_prefect.errors import StoreError, reason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from pydantic import SecretStr

    from mloc_prefect.bridge.events import Delivery, EventSource
    from mloc_prefect.bridge.ports import TaskStore
    from mloc_prefect.settings import MlocSettings

_log = logging.getLogger(__name__)

_CATCH_UP_SECONDS = 3.0
_LOOK_SECONDS = 0.05
ATTENDED_SECONDS = 300.0
"""So long after its last sign of life a process counts as alive: Redis, or a machine, may be away for a while."""

_ATTEND_SECONDS = 20.0


class OneRun:
    """The events of one root run and its stages, out of a source of all.

    Args:
        source: The source.
        root_id: Id of the root run, or None while it is not known.
        submission_id: Its submission, or None while it is not known.
    """

    def __init__(
        self, source: EventSource, root_id: Callable[[], str | None], submission_id: Callable[[], str | None]
    ) -> None:
        self._source, self._root_id, self._submission_id = source, root_id, submission_id

    async def batches(self) -> AsyncIterator[Sequence[Delivery]]:
        """See `EventSource`."""
        async for batch in self._source.batches():
            yield [delivery for delivery in batch if self._own(delivery)]

    def _own(self, delivery: Delivery) -> bool:
        event = delivery.event
        if event.run_id == self._root_id():
            return True
        submission_id = Tags.of(event.tags).submission_id
        return submission_id is not None and submission_id == self._submission_id()


class Republished:
    """Records of the run of this process.

    Args:
        tasks: The records.
        reconciler: Finds what no event told.

    Attributes:
        watch: Sees results and cancellations of its tasks that come from outside.
    """

    def __init__(self, tasks: TaskStore, reconciler: Reconciler, watch: StoreWatch) -> None:
        self._tasks, self._reconciler, self.watch = tasks, reconciler, watch

    async def settle(self, submission_id: str) -> None:
        """Return when the records show the end of the run, or cannot: what is missing then, another bridge finds."""
        deadline = asyncio.get_running_loop().time() + _CATCH_UP_SECONDS
        try:
            while asyncio.get_running_loop().time() < deadline:
                records = await self._tasks.page(submission_id=submission_id, brief=True)
                if records and all(record.mark.phase.terminal for record in records):
                    return
                await asyncio.sleep(_LOOK_SECONDS)
            await self._reconciler.finish(submission_id)
        except (StoreError, httpx.HTTPError) as error:
            _log.warning("the records of this run are not complete: %s", reason(error))


@asynccontextmanager
async def republished(
    settings: MlocSettings, url: SecretStr, root_id: Callable[[], str | None], submission_id: Callable[[], str | None]
) -> AsyncIterator[Republished]:
    """Follow one run of the API in force until the block ends; for the arguments see `OneRun`.

    Raises:
        StoreError: Redis cannot be reached.
        MissingExtraError: Its client is not installed.
    """
    stores = open_stores(url)
    try:
        await stores.check()
        async with get_client() as client, StoreWatch(stores.tasks) as watch:
            runs = PrefectRuns(client)
            keeper = Keeper(stores, runs, Rebuilder(stores.tasks, settings, attended_until=_attended_until))
            follower = Follower(OneRun(SocketSource(), root_id, submission_id), keeper, runs)
            beside = [
                asyncio.create_task(follower.run(), name="republish"),
                asyncio.create_task(attend(stores.tasks, submission_id), name="attend"),
            ]
            try:
                yield Republished(stores.tasks, Reconciler(stores.tasks, keeper, runs), watch)
            finally:
                for task in beside:
                    task.cancel()
                await asyncio.gather(*beside, return_exceptions=True)
    finally:
        await stores.close()


async def attend(tasks: TaskStore, submission_id: Callable[[], str | None], every: float = _ATTEND_SECONDS) -> None:
    """Say until cancelled that this process is there; `submission_id` as in `OneRun`."""
    while True:
        name = submission_id()
        try:
            if name is not None:
                await tasks.attend(name, _attended_until())
        except StoreError as error:
            _log.info("that the run goes on is not told: %s", error.message)
        await asyncio.sleep(every)


def _attended_until() -> float:
    return time.time() + ATTENDED_SECONDS
