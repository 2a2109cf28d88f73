"""Messages of the three channels for `GET /api/v1/events`: heard once by the process, given to all that ask."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mloc_prefect.bridge.odd import contained
from mloc_prefect.bridge.ports import TASK_EVENTS, TASKS, WORKER_EVENTS
from mloc_prefect.errors import StoreError
from mloc_prefect.spec.secrets import mask_document

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from mloc_prefect.bridge.ports import Publisher

CHANNELS = (TASKS, TASK_EVENTS, WORKER_EVENTS)

_log = logging.getLogger(__name__)
_KEPT = 5_000
_BEHIND = 1_000
_AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Heard:
    """A message.

    Attributes:
        number: Its place among all that this process has heard.
        channel: Where.
        message: What, without secrets.
    """

    number: int
    channel: str
    message: dict[str, Any]


class LostBehindError(Exception):
    """The reader took too long; messages it has not had are gone."""


class Feed:
    """The last messages, and those to come.

    Nothing is heard before the first reader asks: most endpoints never have one.

    Args:
        publisher: Where messages come from.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._name = uuid4().hex[:8]
        self._kept: deque[Heard] = deque(maxlen=_KEPT)
        self._number = 0
        self._readers: set[asyncio.Queue[Heard | None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._hearing = asyncio.Event()

    def id_of(self, heard: Heard) -> str:
        """Return the id of a message, which only this process understands."""
        return f"{self._name}-{heard.number}"

    async def open(self) -> None:
        """Begin to hear.

        Raises:
            DispatchError: The store cannot be reached.
        """
        if self._task is None or self._task.done():
            self._hearing.clear()
            self._task = asyncio.create_task(self._hear(), name="feed of messages")
            self._task.add_done_callback(self._ended)
        hearing = asyncio.create_task(self._hearing.wait())
        try:
            await asyncio.wait({hearing, self._task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hearing.cancel()
        if self._task.done():
            await self._task

    async def close(self) -> None:
        """Stop hearing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    @contextmanager
    def reader(self, last_id: str | None) -> Iterator[AsyncIterator[Heard]]:
        """Give messages behind `last_id`, as far as they are kept, and all that come; without it only those to come.

        They end when nothing is heard any more: who comes back with the last id then misses nothing that was heard.
        """
        queue: asyncio.Queue[Heard | None] = asyncio.Queue(_BEHIND + 1)
        name, _, number = (last_id or "").rpartition("-")
        known = name == self._name and number.isascii() and number.isdigit()
        last = int(number[:18]) if known else self._number  # clients send what they like: no number has more digits
        missed = [heard for heard in self._kept if heard.number > last]
        if self._task is not None and self._task.done():
            queue.put_nowait(None)
        self._readers.add(queue)
        try:
            yield _read(missed, queue)
        finally:
            self._readers.discard(queue)

    async def _hear(self) -> None:
        async with self._publisher.listen(*CHANNELS) as messages:
            self._hearing.set()
            async for channel, message in messages:
                with contained(f"a message on {channel}"):  # nested too deep to be masked, say
                    self._give(channel, mask_document(message))

    def _give(self, channel: str, message: dict[str, Any]) -> None:
        self._number += 1
        heard = Heard(self._number, channel, message)
        self._kept.append(heard)
        for queue in self._readers:
            if queue.qsize() <= _BEHIND:  # one place is left, so that the reader sees that it is behind
                queue.put_nowait(heard)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """End all readers, who would wait for ever; the next that opens the feed makes it hear again."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, StoreError):  # that one is the caller's of `open`
            _log.error("messages are not heard until somebody asks again: %r", error)
        for queue in self._readers:
            if not queue.full():
                queue.put_nowait(None)


async def _read(missed: list[Heard], queue: asyncio.Queue[Heard | None]) -> AsyncIterator[Heard]:
    for heard in missed:
        yield heard
    while True:
        if queue.full():
            raise LostBehindError
        coming = await queue.get()
        if coming is None:
            return
        yield coming
