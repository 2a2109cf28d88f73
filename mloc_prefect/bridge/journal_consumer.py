"""Reads the journal: makes one Prefect run of each accepted submission, and ends what a cancellation names.

An entry stays in the journal until Prefect has it. The entries of one submission are handled in order; those of other
submissions are handled at the same time, whatever happens to it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING

from mloc_prefect.bridge.journal_handlers import JournalHandlers, is_server_error
from mloc_prefect.errors import StoreError, reason
from mloc_prefect.process.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from prefect.client.orchestration import PrefectClient

    from mloc_prefect.bridge.prefect_runs import RunReader
    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.store.backends import Stores
    from mloc_prefect.store.interfaces import JournalEntry

_log = logging.getLogger(__name__)

AT_ONCE = 8
MOST_FAILURES = 10
"""Tries of an entry that fails while others succeed, before it is given up: about 16 s."""

MOST_UNCOMPARED_FAILURES = 60
"""Tries of an entry to which the server answers with errors of its own, while no other entry succeeds: two minutes."""

MOST_HELD = 256
"""Entries that may be read and unfinished; with so many, no more are read."""

BATCH = 32
"""Entries that are read at once."""

_BLOCK_MS = 1000
_RECLAIM_SECONDS = 30.0
_WAITS = Backoff(first=0.25, most=2.0)


class JournalConsumer:
    """Reads the journal and handles its entries.

    Args:
        stores: Journal and records.
        client: Prefect's API.
        runs: Reads flow runs from it.
        settings: Pool and results root.
        consumer: Name in the journal's group; the active bridge takes over the entries of its predecessor.
        most_held: See `MOST_HELD`.
        batch: See `BATCH`.
    """

    def __init__(
        self,
        stores: Stores,
        client: PrefectClient,
        runs: RunReader,
        settings: MlocSettings,
        *,
        consumer: str = "bridge",
        most_held: int = MOST_HELD,
        batch: int = BATCH,
    ) -> None:
        self._journal, self._consumer = stores.journal, consumer
        self._most_held, self._batch = most_held, batch
        self._handlers = JournalHandlers(stores, client, runs, settings)
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._queues: dict[str, deque[JournalEntry]] = {}  # by submission; the first one is being handled
        self._held: set[str] = set()
        self._done = asyncio.Event()
        self._reclaimed = 0.0
        self._succeeded = 0

    async def consume_journal(self) -> None:
        """Handle entries until cancelled; several submissions at once, the entries of each in order."""
        waits = iter(_WAITS)
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    entries = await self._read()
                    waits = iter(_WAITS)
                except StoreError as error:
                    _log.warning("could not read the journal, will retry: %s", error.message)
                    await asyncio.sleep(next(waits))
                    continue
                self._enqueue(entries, tasks)
                while len(self._held) >= self._most_held:
                    self._done.clear()
                    await self._done.wait()

    async def dispatch(self, entries: Sequence[JournalEntry]) -> None:
        """Handle entries and acknowledge each; returns when all are done, however long an outage takes."""
        async with asyncio.TaskGroup() as tasks:
            self._enqueue(entries, tasks)

    async def _read(self) -> list[JournalEntry]:
        entries = list(await self._journal.read(self._consumer, block_ms=_BLOCK_MS, count=self._batch))
        if time.monotonic() - self._reclaimed > _RECLAIM_SECONDS:
            self._reclaimed = time.monotonic()
            idle = int(1000 * _RECLAIM_SECONDS)
            count = len(self._held) + self._batch  # includes our own unfinished entries, which come first
            entries += await self._journal.reclaim(self._consumer, min_idle_ms=idle, count=count)
        return entries

    def _enqueue(self, entries: Sequence[JournalEntry], tasks: asyncio.TaskGroup) -> None:
        """Append each new entry to the queue of its submission."""
        for entry in entries:
            if entry.id in self._held:
                continue
            self._held.add(entry.id)
            if (queue := self._queues.get(entry.submission_id)) is not None:
                queue.append(entry)
                continue
            queue = self._queues[entry.submission_id] = deque([entry])
            tasks.create_task(self._handle_in_order(entry.submission_id, queue))

    async def _handle_in_order(self, submission_id: str, queue: deque[JournalEntry]) -> None:
        while queue:
            await self._until_done(queue[0])
            self._held.discard(queue.popleft().id)
            self._done.set()
        del self._queues[submission_id]

    async def _until_done(self, entry: JournalEntry) -> None:
        """Retry an entry during an outage without limit, and a limited number of times when only this entry fails."""
        succeeded = self._succeeded
        for failed, pause in enumerate(_WAITS, start=1):
            async with self._slots:
                error = await self._until_reachable(entry, self._handlers.handle_entry)
            if error is None:
                self._succeeded += 1
                return
            alone = self._succeeded == succeeded and is_server_error(error)
            if failed >= (MOST_UNCOMPARED_FAILURES if alone else MOST_FAILURES):
                await self._give_up(entry, error, failed)
                return
            if failed == 1:
                _log.warning("%s of %s failed, will retry: %s", entry.kind, entry.submission_id, reason(error))
            await asyncio.sleep(pause)  # outside of the semaphore, so that other entries proceed

    async def _give_up(self, entry: JournalEntry, error: Exception, failed: int) -> None:
        _log.error("%s of %s was given up after %d tries", entry.kind, entry.submission_id, failed, exc_info=error)

        async def write(entry: JournalEntry) -> None:
            await self._handlers.give_up(entry, error)

        async with self._slots:
            again = await self._until_reachable(entry, write)
        if again is not None:  # it stays in the journal and is reclaimed later
            _log.error("%s of %s could not be given up: %s", entry.kind, entry.submission_id, reason(again))

    async def _until_reachable(
        self, entry: JournalEntry, do: Callable[[JournalEntry], Awaitable[None]]
    ) -> Exception | None:
        """Do it and acknowledge the entry, however long an outage of Redis or Prefect takes; return any other error.

        The caller keeps the semaphore while this waits: during an outage no other entry would get further.
        """
        for failed, pause in enumerate(_WAITS):
            try:
                await do(entry)
                await self._journal.ack(entry)
            except Exception as error:  # boundary: one malformed entry must not stop the others
                if not await self._handlers.is_outage(error):
                    return error
                level = logging.WARNING if not failed else logging.DEBUG  # once, not at every retry
                _log.log(level, "%s of %s is waiting, will retry: %s", entry.kind, entry.submission_id, reason(error))
            else:
                return None
            await asyncio.sleep(pause)
        raise AssertionError("the waits have no end")
