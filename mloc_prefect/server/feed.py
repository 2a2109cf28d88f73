"""Messages of the three channels for `GET /api/v1/events`: heard once by the process, given to all that ask."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mloc_prefect.bridge.ports import TASK_EVENTS, TASKS, WORKER_EVENTS
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
        self._readers: set[asyncio.Queue[Heard]] = set()
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
        """Give messages behind `last_id`, as far as they are kept, and all that come; without it only those to come."""
        queue: asyncio.Queue[Heard] = asyncio.Queue(_BEHIND + 1)
        name, _, number = (last_id or "").rpartition("-")
        missed = [h for h in self._kept if h.number > int(number)] if name == self._name and number.isdigit() else []
        self._readers.add(queue)
        try:
            yield _read(missed, queue)
        finally:
            self._readers.discard(queue)

    async def _hear(self) -> None:
        async with self._publisher.listen(*CHANNELS) as messages:
            self._hearing.set()
            async for channel, message in messages:
                self._number += 1
                heard = Heard(self._number, channel, mask_document(message))
                self._kept.append(heard)
                for queue in self._readers:
                    if queue.qsize() <= _BEHIND:  # one place is left, so that the reader sees that it is behind
                        queue.put_nowait(heard)


async def _read(missed: list[Heard], queue: asyncio.Queue[Heard]) -> AsyncIterator[Heard]:
    for heard in missed:
        yield heard
    while True:
        if queue.full():
            raise LostBehindError
        yield await queue.get()
