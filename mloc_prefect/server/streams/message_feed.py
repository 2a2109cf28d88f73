"""Messages of the three channels for `GET /api/v1/events`: one subscription per process, any number of readers."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mloc_prefect.errors import StoreError
from mloc_prefect.spec.secrets import mask_document
from mloc_prefect.store.interfaces import TASK_EVENTS, TASKS, WORKER_EVENTS
from mloc_prefect.store.isolation import isolated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from mloc_prefect.store.interfaces import Publisher

CHANNELS = (TASKS, TASK_EVENTS, WORKER_EVENTS)

_log = logging.getLogger(__name__)
_KEPT = 5_000
_BEHIND = 1_000
_AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class HeardMessage:
    """A received message.

    Attributes:
        number: Its position among all messages that this process has received.
        channel: Its channel.
        message: Its content, without secrets.
    """

    number: int
    channel: str
    message: dict[str, Any]


class LostBehindError(Exception):
    """The reader was too slow and has missed messages."""


class MessageFeed:
    """The most recent messages, and the following ones.

    It subscribes when the first reader arrives; most endpoints never have one.

    Args:
        publisher: The source of messages.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._name = uuid4().hex[:8]
        self._kept: deque[HeardMessage] = deque(maxlen=_KEPT)
        self._number = 0
        self._readers: set[asyncio.Queue[HeardMessage | None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._hearing = asyncio.Event()

    def id_of(self, heard: HeardMessage) -> str:
        """Return the id of a message, which only this process understands."""
        return f"{self._name}-{heard.number}"

    async def open(self) -> None:
        """Subscribe, unless that was done before.

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
        """Unsubscribe."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    @contextmanager
    def reader(self, last_id: str | None) -> Iterator[AsyncIterator[HeardMessage]]:
        """Yield the messages after `last_id`, as far as they are kept, and all following ones.

        Without `last_id`, only following messages. They end if the subscription ends; a client that reconnects with its
        last id misses no received message.
        """
        queue: asyncio.Queue[HeardMessage | None] = asyncio.Queue(_BEHIND + 1)
        name, _, number = (last_id or "").rpartition("-")
        known = name == self._name and number.isascii() and number.isdigit()
        last = int(number[:18]) if known else self._number  # clients may send anything; no valid number is longer
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
                with isolated(f"a message on {channel}"):  # it may be nested too deeply to be masked
                    self._give(channel, mask_document(message))

    def _give(self, channel: str, message: dict[str, Any]) -> None:
        self._number += 1
        heard = HeardMessage(self._number, channel, message)
        self._kept.append(heard)
        for queue in self._readers:
            if queue.qsize() <= _BEHIND:  # a full queue tells the reader that it is behind
                queue.put_nowait(heard)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """End all readers, which would wait forever; the next `open` subscribes again."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, StoreError):  # `open` raises a StoreError
            _log.error("the subscription to messages has ended, the next reader will renew it: %r", error)
        for queue in self._readers:
            if not queue.full():
                queue.put_nowait(None)


async def _read(missed: list[HeardMessage], queue: asyncio.Queue[HeardMessage | None]) -> AsyncIterator[HeardMessage]:
    for heard in missed:
        yield heard
    while True:
        if queue.full():
            raise LostBehindError
        coming = await queue.get()
        if coming is None:
            return
        yield coming
