"""From the journal to Prefect: each accepted submission becomes one run, each cancellation the end of one.

An entry stays in the journal until Prefect has it. The entries of one submission are done one after the other, in their
order; those of others go on beside them, whatever becomes of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING

from mloc_prefect.bridge.entry_work import EntryWork
from mloc_prefect.errors import StoreError, reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from prefect.client.orchestration import PrefectClient

    from mloc_prefect.bridge.ports import Entry
    from mloc_prefect.bridge.runs import Runs
    from mloc_prefect.bridge.stores import Stores
    from mloc_prefect.settings import MlocSettings

_log = logging.getLogger(__name__)

AT_ONCE = 8
MOST_FAILURES = 10
"""Tries of an entry that may fail, the others going well, before it is given up: about 16 s."""

_MOST_HELD = 256  # entries that are read and not done; with so many no more are read
_BATCH = 32
_BLOCK_MS = 1000
_RECLAIM_SECONDS = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 2.0


class DispatchService:
    """Reads the journal until it is cancelled.

    Args:
        stores: Journal and records.
        client: Prefect's API.
        runs: The same, for reading.
        settings: Pool and results root.
        consumer: Name in the journal's group; the active bridge takes over what its predecessor had taken.
    """

    def __init__(
        self, stores: Stores, client: PrefectClient, runs: Runs, settings: MlocSettings, *, consumer: str = "bridge"
    ) -> None:
        self._journal, self._consumer = stores.journal, consumer
        self._work = EntryWork(stores, client, runs, settings)
        self._room = asyncio.Semaphore(AT_ONCE)
        self._queues: dict[str, deque[Entry]] = {}  # by submission, the one that is being done first
        self._held: set[str] = set()
        self._done = asyncio.Event()
        self._reclaimed = 0.0

    async def run(self) -> None:
        """Dispatch until cancelled; several submissions at once, the entries of one after each other."""
        pause = _FIRST_PAUSE
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    entries = await self._read()
                    pause = _FIRST_PAUSE
                except StoreError as error:
                    _log.warning("the journal waits: %s", error.message)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
                    continue
                self._take(entries, tasks)
                while len(self._held) >= _MOST_HELD:
                    self._done.clear()
                    await self._done.wait()

    async def dispatch(self, entries: Sequence[Entry]) -> None:
        """Do entries and acknowledge each; returns when all are done, however long Prefect is away."""
        async with asyncio.TaskGroup() as tasks:
            self._take(entries, tasks)

    async def _read(self) -> list[Entry]:
        entries = list(await self._journal.read(self._consumer, block_ms=_BLOCK_MS, count=_BATCH))
        if time.monotonic() - self._reclaimed > _RECLAIM_SECONDS:
            self._reclaimed = time.monotonic()
            idle = int(1000 * _RECLAIM_SECONDS)
            count = len(self._held) + _BATCH  # our own that wait for long are among them, and come first
            entries += await self._journal.reclaim(self._consumer, min_idle_ms=idle, count=count)
        return entries

    def _take(self, entries: Sequence[Entry], tasks: asyncio.TaskGroup) -> None:
        """Put each entry that is new behind those of its submission."""
        for entry in entries:
            if entry.id in self._held:
                continue
            self._held.add(entry.id)
            if (queue := self._queues.get(entry.submission_id)) is not None:
                queue.append(entry)
                continue
            queue = self._queues[entry.submission_id] = deque([entry])
            tasks.create_task(self._in_order(entry.submission_id, queue))

    async def _in_order(self, submission_id: str, queue: deque[Entry]) -> None:
        while queue:
            await self._until_done(queue[0])
            self._held.discard(queue.popleft().id)
            self._done.set()
        del self._queues[submission_id]

    async def _until_done(self, entry: Entry) -> None:
        """Try an entry again while Prefect is away, and some times more when only this one fails."""
        pause, failed = _FIRST_PAUSE, 0
        while True:
            async with self._room:
                error = await self._patiently(entry, self._work.do)
            if error is None:
                return
            failed += 1
            if failed >= MOST_FAILURES:
                break
            if failed == 1:
                _log.warning("%s of %s fails, and is tried again: %s", entry.kind, entry.submission_id, reason(error))
            await asyncio.sleep(pause)  # without the room: nobody else has to wait for it
            pause = min(2 * pause, _LONGEST_PAUSE)
        await self._give_up(entry, error)

    async def _give_up(self, entry: Entry, error: Exception) -> None:
        _log.error(
            "%s of %s is given up after %d tries", entry.kind, entry.submission_id, MOST_FAILURES, exc_info=error
        )

        async def write(entry: Entry) -> None:
            await self._work.give_up(entry, error)

        async with self._room:
            again = await self._patiently(entry, write)
        if again is not None:  # it stays in the journal, and is taken up again like one that was forgotten
            _log.error("%s of %s cannot be given up: %s", entry.kind, entry.submission_id, reason(again))

    async def _patiently(self, entry: Entry, do: Callable[[Entry], Awaitable[None]]) -> Exception | None:
        """Do it and acknowledge the entry, however long Redis or Prefect are away; return what else went wrong.

        Whoever waits here keeps its part of the room: while something is away, no other would get further.
        """
        pause = _FIRST_PAUSE
        while True:
            try:
                await do(entry)
                await self._journal.ack(entry)
            except Exception as error:  # boundary: one odd entry must not stop the others
                if not await self._work.away(error):
                    return error
                level = logging.WARNING if pause == _FIRST_PAUSE else logging.DEBUG  # once, not at every try
                _log.log(level, "%s of %s waits: %s", entry.kind, entry.submission_id, reason(error))
            else:
                return None
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
