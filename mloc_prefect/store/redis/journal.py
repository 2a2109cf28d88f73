"""The journal in Redis: the stream `mloc:journal`, read by the consumer group `dispatch`."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, cast

from redis.exceptions import ResponseError

from mloc_prefect.store.interfaces import JournalEntry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mloc_prefect.store.redis.redis_client import RedisClient

_log = logging.getLogger(__name__)

JOURNAL = "mloc:journal"
GROUP = "dispatch"
_BLOCK_MS = 1000
"""Longest single wait: shorter than the timeout after which a silent server counts as unreachable."""

_NEW = ">"


class RedisJournal:
    """A `Journal` in Redis; acknowledged entries are deleted, so the stream holds only open ones."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._last_own: dict[str, str] = {}  # consumer -> last of its earlier entries that was returned, or `>`

    async def read(self, consumer: str, *, block_ms: int = 0, count: int = 16) -> Sequence[JournalEntry]:
        """Return the next entries, at most `count`; wait up to `block_ms` for the first."""
        if self._last_own.get(consumer) != _NEW:
            entries = await self._read(consumer, self._last_own.get(consumer, "0"), count, None)
            self._last_own[consumer] = entries[-1].id if entries else _NEW
            if entries:
                return entries
        deadline = time.monotonic() + block_ms / 1000
        while True:
            left = int(1000 * (deadline - time.monotonic()))
            entries = await self._read(consumer, _NEW, count, min(left, _BLOCK_MS) if left > 0 else None)
            if entries or left <= _BLOCK_MS:
                return entries

    async def ack(self, entry: JournalEntry) -> None:
        """Remove a handled entry from the journal."""
        with self._client.guard():
            async with self._client.redis.pipeline(transaction=True) as pipe:
                pipe.xack(JOURNAL, GROUP, entry.id)
                pipe.xdel(JOURNAL, entry.id)
                await pipe.execute()

    async def reclaim(self, consumer: str, *, min_idle_ms: int, count: int = 16) -> Sequence[JournalEntry]:
        """Take over entries that any consumer read at least `min_idle_ms` ago and has not acknowledged."""
        found = await self._in_group(
            lambda: self._client.redis.xautoclaim(JOURNAL, GROUP, consumer, min_idle_ms, "0-0", count=count)
        )
        return await self._well_formed(found[1])

    async def depth(self) -> int:
        """Return the number of unacknowledged entries."""
        with self._client.guard():
            return int(await self._client.redis.xlen(JOURNAL))

    async def _read(self, consumer: str, start: str, count: int, block: int | None) -> Sequence[JournalEntry]:
        found = await self._in_group(
            lambda: self._client.waiting.xreadgroup(GROUP, consumer, {JOURNAL: start}, count=count, block=block)
        )
        return await self._well_formed(found[0][1]) if found else []

    async def _well_formed(self, rows: Sequence[tuple[bytes, dict[bytes, bytes] | None]]) -> Sequence[JournalEntry]:
        """Return the well-formed entries and remove the others, which would otherwise always come first.

        Redis 6.2 returns deleted entries without fields.
        """
        found = []
        for entry_id, fields in rows:
            if not fields:
                continue
            try:
                found.append(_entry(entry_id.decode(), fields))
            except (KeyError, UnicodeDecodeError) as error:
                _log.error("dropping entry %s of the journal, which cannot be read: %s", entry_id.decode(), error)
                await self.ack(JournalEntry(entry_id.decode(), "submit", ""))
        return found

    async def _in_group(self, command: Callable[[], Awaitable[Any]]) -> Any:
        """Run a command of the group; create the group when it is missing (first use, or a flushed database)."""
        with self._client.guard():
            try:
                return await command()
            except ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
            await self._make_group()
            return await command()

    async def _make_group(self) -> None:
        try:
            await self._client.redis.xgroup_create(JOURNAL, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):  # another process created it first
                raise


def _entry(entry_id: str, fields: dict[bytes, bytes]) -> JournalEntry:
    text = {name.decode(): value.decode() for name, value in fields.items()}
    kind = "cancel" if text["kind"] == "cancel" else "submit"
    return JournalEntry(entry_id, cast("Any", kind), text["submission"], text.get("task"))
