"""The task watch of runs that have a store of records: one look for all waiting stages of a process at a time."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from mloc_prefect.bridge.states import Phase
from mloc_prefect.bridge.stores import open_stores
from mloc_prefect.errors import PlanError, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType
    from typing import Self

    from pydantic import SecretStr

    from mloc_prefect.bridge.ports import TaskStore
    from mloc_prefect.bridge.records import TaskRecord
    from mloc_prefect.orchestrate.watch import End
    from mloc_prefect.settings import MlocSettings

_log = logging.getLogger(__name__)

LOOK_SECONDS = 0.4
_AWAY_SECONDS = 2.0
_ENDS: dict[Phase, End] = {Phase.DONE: "DONE", Phase.FAILED: "FAILED", Phase.CANCELLED: "CANCELLED"}


class StoreWatch:
    """A `TaskWatch` on task records; an async context manager.

    Polled, not subscribed: a message that is missed would leave a stage waiting for ever, and a look at all tasks of
    a process is one request.

    Args:
        tasks: The records.
        every: Seconds between looks.
    """

    def __init__(self, tasks: TaskStore, *, every: float = LOOK_SECONDS) -> None:
        self._tasks, self._every = tasks, every
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._known: dict[str, TaskRecord] = {}
        self._more = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._looking = asyncio.create_task(self._look(), name="watch of task records")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._looking is not None
        self._looking.cancel()
        await asyncio.gather(self._looking, return_exceptions=True)

    async def completed(self, task_id: str) -> None:
        """See `TaskWatch`."""
        await self._until(task_id, lambda record: record is not None and record.mark.phase is Phase.DONE)

    async def cancelled(self, task_id: str) -> None:
        """See `TaskWatch`."""
        await self._until(task_id, lambda record: record is not None and record.mark.phase is Phase.CANCELLED)

    async def ended(self, task_id: str) -> End:
        """See `TaskWatch`."""
        record = await self._until(task_id, lambda record: record is None or record.mark.phase.terminal)
        if record is None:
            raise PlanError(f"dependsOn names task {task_id}, which is not known here")
        return _ENDS[record.mark.phase]

    async def _until(self, task_id: str, fact: Callable[[TaskRecord | None], bool]) -> TaskRecord | None:
        """Return the record of a task as soon as `fact` holds of it."""
        looked = asyncio.Event()
        self._waiting.setdefault(task_id, set()).add(looked)
        try:
            while True:
                looked.clear()
                self._more.set()
                await looked.wait()
                record = self._known.get(task_id)
                if fact(record):
                    return record
        finally:
            waiting = self._waiting[task_id]
            waiting.discard(looked)
            if not waiting:
                del self._waiting[task_id]

    async def _look(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            wanted = list(self._waiting)
            try:
                self._known = dict(await self._tasks.get_many(wanted, brief=True))
            except StoreError as error:
                _log.warning("no look at task records: %s", error.message)
                self._more.set()
                await asyncio.sleep(_AWAY_SECONDS)
                continue
            self._tell(wanted)
            await asyncio.sleep(self._every)

    def _tell(self, wanted: list[str]) -> None:
        for task_id in wanted:
            for looked in self._waiting.get(task_id, ()):
                looked.set()


@asynccontextmanager
async def task_watch(settings: MlocSettings) -> AsyncIterator[StoreWatch | None]:
    """Yield the watch of the store in `settings`, one for all runs of an event loop; None without a store."""
    if settings.redis_url is None:
        yield None
        return
    key = (asyncio.get_running_loop(), settings.redis_url.get_secret_value())
    shared = _shared.get(key)
    if shared is None:
        shared = _shared[key] = _Shared(settings.redis_url)
    watch = await shared.enter()
    try:
        yield watch
    finally:
        await shared.leave()
        if not shared.users:
            _shared.pop(key, None)


class _Shared:
    """A watch with its connections, which ends with its last user."""

    def __init__(self, url: SecretStr) -> None:
        self._stores = open_stores(url)
        self._watch = StoreWatch(self._stores.tasks)
        self.users = 0

    async def enter(self) -> StoreWatch:
        self.users += 1
        if self.users == 1:
            await self._watch.__aenter__()
        return self._watch

    async def leave(self) -> None:
        self.users -= 1
        if not self.users:
            await self._watch.__aexit__(None, None, None)
            await self._stores.close()


_shared: dict[tuple[asyncio.AbstractEventLoop, str], _Shared] = {}
