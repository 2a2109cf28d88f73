"""The journal in Redis: the stream `mloc:journal`, read by the consumer group `dispatch`."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, cast

from redis.exceptions import ResponseError

from mloc_prefect.bridge.ports import Entry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mloc_prefect.bridge.redis_client import RedisClient

_log = logging.getLogger(__name__)

JOURNAL = "mloc:journal"
GROUP = "dispatch"
_BLOCK_MS = 1000
"""Longest single wait: below the time after which a silent server counts as gone."""

_NEW = ">"


class RedisJournal:
    """The journal of `bridge.ports`; acknowledged entries are deleted, so the stream holds what is open."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._own: dict[str, str] = {}  # consumer -> last of its earlier entries that was given, or `>`

    async def read(self, consumer: str, *, block_ms: int = 0, count: int = 16) -> Sequence[Entry]:
        """Return the next entries, at most `count`; waits up to `block_ms` for the first."""
        if self._own.get(consumer) != _NEW:
            entries = await self._read(consumer, self._own.get(consumer, "0"), count, None)
            self._own[consumer] = entries[-1].id if entries else _NEW
            if entries:
                return entries
        deadline = time.monotonic() + block_ms / 1000
        while True:
            left = int(1000 * (deadline - time.monotonic()))
            entries = await self._read(consumer, _NEW, count, min(left, _BLOCK_MS) if left > 0 else None)
            if entries or left <= _BLOCK_MS:
                return entries

    async def ack(self, entry: Entry) -> None:
        """Take a finished entry out of the journal."""
        with self._client.guard():
            async with self._client.redis.pipeline(transaction=True) as pipe:
                pipe.xack(JOURNAL, GROUP, entry.id)
                pipe.xdel(JOURNAL, entry.id)
                await pipe.execute()

    async def reclaim(self, consumer: str, *, min_idle_ms: int, count: int = 16) -> Sequence[Entry]:
        """Take over entries that any consumer took at least `min_idle_ms` ago and has not acknowledged."""
        found = await self._in_group(
            lambda: self._client.redis.xautoclaim(JOURNAL, GROUP, consumer, min_idle_ms, "0-0", count=count)
        )
        return await self._sound(found[1])

    async def depth(self) -> int:
        """Return how many entries are not acknowledged."""
        with self._client.guard():
            return int(await self._client.redis.xlen(JOURNAL))

    async def _read(self, consumer: str, start: str, count: int, block: int | None) -> Sequence[Entry]:
        found = await self._in_group(
            lambda: self._client.waiting.xreadgroup(GROUP, consumer, {JOURNAL: start}, count=count, block=block)
        )
        return await self._sound(found[0][1]) if found else []

    async def _sound(self, rows: Sequence[tuple[bytes, dict[bytes, bytes] | None]]) -> Sequence[Entry]:
        """Return the entries that can be read, and take the others out: they would come first for ever.

        Redis 6.2 shows deleted ones without fields.
        """
        found = []
        for entry_id, fields in rows:
            if not fields:
                continue
            try:
                found.append(_entry(entry_id.decode(), fields))
            except (KeyError, UnicodeDecodeError) as error:
                _log.error("entry %s of the journal cannot be read (%s) and is dropped", entry_id.decode(), error)
                await self.ack(Entry(entry_id.decode(), "submit", ""))
        return found

    async def _in_group(self, command: Callable[[], Awaitable[Any]]) -> Any:
        """Run a command of the group; makes the group when it is not there (first use, or a flushed database)."""
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
            if not str(error).startswith("BUSYGROUP"):  # another process was first
                raise


def _entry(entry_id: str, fields: dict[bytes, bytes]) -> Entry:
    text = {name.decode(): value.decode() for name, value in fields.items()}
    kind = "cancel" if text["kind"] == "cancel" else "submit"
    return Entry(entry_id, cast("Any", kind), text["submission"], text.get("task"))
