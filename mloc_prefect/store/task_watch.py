"""Lets a run wait for what happens to tasks from outside: results posted to them, cancellations, other submissions."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal, Protocol

from mloc_prefect.artifacts.layout import task_dir
from mloc_prefect.artifacts.manifest import read_manifest
from mloc_prefect.errors import PlanError, StoreError
from mloc_prefect.store.backends import open_stores
from mloc_prefect.store.states import Phase

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from pydantic import SecretStr

    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.store.backends import Stores
    from mloc_prefect.store.interfaces import TaskStore
    from mloc_prefect.store.records import TaskRecord

_log = logging.getLogger(__name__)

End = Literal["DONE", "FAILED", "CANCELLED"]

POLL_SECONDS = 0.4
RETRY_SECONDS = 2.0
_REST = 10.0  # times as long as the read before it took: a thousand records take a tenth of a second
_LONGEST_REST_SECONDS = 2.0
_ENDS: dict[Phase, End] = {Phase.DONE: "DONE", Phase.FAILED: "FAILED", Phase.CANCELLED: "CANCELLED"}


class TaskWatch(Protocol):
    """Waits for what happens to tasks; each call may be cancelled."""

    async def completed(self, task_id: str) -> None:
        """Return when a result from outside has completed the task; wait indefinitely if none comes."""

    async def cancelled(self, task_id: str) -> None:
        """Return when the task was cancelled from outside; wait indefinitely if it is not."""

    async def is_cancelled(self, task_id: str) -> bool:
        """Return whether the task is cancelled now; False also while that cannot be read."""
        ...

    async def ended(self, task_id: str) -> End:
        """Return how a task, usually of another submission, ended.

        Raises:
            PlanError: No such task is known.
        """
        ...


class ManifestWatch:
    """A `TaskWatch` on the manifests below one results root, for runs without a store of task records.

    Args:
        root: Results root.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    async def completed(self, task_id: str) -> None:
        """See `TaskWatch`; without a store nothing outside completes tasks."""
        del task_id
        await asyncio.Event().wait()

    async def cancelled(self, task_id: str) -> None:
        """See `TaskWatch`; without a store nothing outside cancels tasks."""
        del task_id
        await asyncio.Event().wait()

    async def is_cancelled(self, task_id: str) -> bool:
        """See `TaskWatch`."""
        del task_id
        return False

    async def ended(self, task_id: str) -> End:
        """See `TaskWatch`. An unfinished task cannot be told from one that never existed, so both are refused."""
        manifest = await asyncio.to_thread(read_manifest, task_dir(self._root, task_id))
        if manifest is None:
            raise PlanError(
                f"depends on task {task_id!r}, which is not done below {self._root}",
                hint="run it first, or name a stage of this spec in dependsOn",
            )
        return "DONE"


class StoreWatch:
    """A `TaskWatch` on task records; an async context manager.

    It polls instead of subscribing: a missed message would leave a stage waiting indefinitely, and one request reads
    all tasks that a process waits for.

    Args:
        tasks: The records.
        every: Seconds between two reads, more when a read takes long.
        retry: Seconds until the next read when the store cannot be reached.
    """

    def __init__(self, tasks: TaskStore, *, every: float = POLL_SECONDS, retry: float = RETRY_SECONDS) -> None:
        self._tasks, self._every, self._retry = tasks, every, retry
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._known: dict[str, TaskRecord] = {}
        self._requested = asyncio.Event()
        self._poller: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    def start(self) -> None:
        """Start to read; needs a running event loop."""
        self._poller = asyncio.create_task(self._poll(), name="watch of task records")

    async def stop(self) -> None:
        """Stop to read."""
        assert self._poller is not None
        self._poller.cancel()
        await asyncio.gather(self._poller, return_exceptions=True)

    async def completed(self, task_id: str) -> None:
        """See `TaskWatch`."""
        await self._until(task_id, lambda record: record is not None and record.mark.phase is Phase.DONE)

    async def cancelled(self, task_id: str) -> None:
        """See `TaskWatch`."""
        await self._until(task_id, lambda record: record is not None and record.mark.phase is Phase.CANCELLED)

    async def is_cancelled(self, task_id: str) -> bool:
        """See `TaskWatch`; the records are read now, not at the next poll."""
        try:
            record = (await self._tasks.get_many([task_id], brief=True)).get(task_id)
        except StoreError as error:  # runs go on without the store; `cancelled` tells later
            _log.warning("could not read whether task %s is cancelled: %s", task_id, error.message)
            return False
        return record is not None and record.mark.phase is Phase.CANCELLED

    async def ended(self, task_id: str) -> End:
        """See `TaskWatch`."""
        record = await self._until(task_id, lambda record: record is None or record.mark.phase.terminal)
        if record is None:
            raise PlanError(f"dependsOn names task {task_id}, which is not known here")
        return _ENDS[record.mark.phase]

    async def _until(self, task_id: str, fact: Callable[[TaskRecord | None], bool]) -> TaskRecord | None:
        """Return the record of a task as soon as `fact` holds for it."""
        checked = asyncio.Event()
        self._waiting.setdefault(task_id, set()).add(checked)
        try:
            while True:
                checked.clear()
                self._requested.set()
                await checked.wait()
                record = self._known.get(task_id)
                if fact(record):
                    return record
        finally:
            waiting = self._waiting[task_id]
            waiting.discard(checked)
            if not waiting:
                del self._waiting[task_id]

    async def _poll(self) -> None:
        while True:
            await self._requested.wait()
            self._requested.clear()
            wanted, began = list(self._waiting), time.monotonic()
            try:
                self._known = dict(await self._tasks.get_many(wanted, brief=True))
            except StoreError as error:
                _log.warning("could not read task records, will retry: %s", error.message)
                self._requested.set()
                await asyncio.sleep(self._retry)
                continue
            for task_id in wanted:
                for checked in self._waiting.get(task_id, ()):
                    checked.set()
            rest = min(_REST * (time.monotonic() - began), _LONGEST_REST_SECONDS)
            await asyncio.sleep(max(self._every, rest))


@asynccontextmanager
async def open_task_watch(
    settings: MlocSettings, connect: Callable[[SecretStr], Stores] = open_stores
) -> AsyncIterator[StoreWatch | None]:
    """Yield the watch of the store in `settings`, shared by all runs of an event loop; None without a store.

    Args:
        settings: For the URL of the store.
        connect: Opens the store.
    """
    if settings.redis_url is None:
        yield None
        return
    key = (asyncio.get_running_loop(), settings.redis_url.get_secret_value())
    shared = _shared.get(key)
    if shared is None:
        shared = _shared[key] = _SharedWatch(connect(settings.redis_url))
    shared.users += 1
    try:
        yield shared.watch
    finally:
        shared.users -= 1
        if not shared.users:
            # Out of the table first: a run that begins while this one closes must open a store of its own.
            del _shared[key]
            await shared.close()


class _SharedWatch:
    """A running watch with its connections, and the number of runs that use it."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self.watch = StoreWatch(stores.tasks)
        self.watch.start()
        self.users = 0

    async def close(self) -> None:
        await self.watch.stop()
        await self._stores.close()


_shared: dict[tuple[asyncio.AbstractEventLoop, str], _SharedWatch] = {}
