"""The journal in a list: the twin of `store.redis.journal`."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from mloc_prefect.store.interfaces import JournalEntry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class MemoryJournal:
    """The journal in a list.

    Args:
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = 0
        self._waiting: list[JournalEntry] = []
        self._taken: dict[str, tuple[JournalEntry, float]] = {}
        self._added = asyncio.Event()

    def add(self, entry: JournalEntry) -> JournalEntry:
        """Append an entry, with a new `id`."""
        self._last += 1
        entry = replace(entry, id=f"{self._last}-0")
        self._waiting.append(entry)
        self._added.set()
        return entry

    async def read(self, consumer: str, *, block_ms: int = 0, count: int = 16) -> Sequence[JournalEntry]:
        """Return the next entries, at most `count`; wait up to `block_ms` for the first."""
        del consumer
        if not self._waiting and block_ms:
            self._added.clear()
            try:
                async with asyncio.timeout(block_ms / 1000):
                    await self._added.wait()
            except TimeoutError:
                return []
        entries, self._waiting = self._waiting[:count], self._waiting[count:]
        return self._take(entries)

    async def ack(self, entry: JournalEntry) -> None:
        """Remove a handled entry from the journal."""
        self._taken.pop(entry.id, None)

    async def reclaim(self, consumer: str, *, min_idle_ms: int, count: int = 16) -> Sequence[JournalEntry]:
        """Take over entries that any consumer read at least `min_idle_ms` ago and has not acknowledged."""
        del consumer
        latest = self._clock() - min_idle_ms / 1000
        return self._take([entry for entry, since in self._taken.values() if since <= latest][:count])

    async def depth(self) -> int:
        """Return the number of unacknowledged entries."""
        return len(self._waiting) + len(self._taken)

    def _take(self, entries: Sequence[JournalEntry]) -> Sequence[JournalEntry]:
        self._taken |= {entry.id: (entry, self._clock()) for entry in entries}
        return entries
