"""Messages within one process: the twin of `store.redis.publisher`."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from mloc_prefect.store.interfaces import Message, Publisher


class MemoryPublisher:
    """Keeps all messages and delivers them to subscribers at once."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self._subscribers: list[tuple[str, Callable[[dict[str, Any]], None]]] = []

    def subscribe(self, channel: str, receiver: Callable[[dict[str, Any]], None]) -> None:
        """Call `receiver` with each later message on `channel`."""
        self._subscribers.append((channel, receiver))

    async def publish(self, channel: str, message: Mapping[str, Any]) -> int:
        """Send one message, copied through JSON as on the wire; return the number of receivers."""
        data = json.loads(json.dumps(message))
        self.sent.append((channel, data))
        receivers = [receiver for name, receiver in self._subscribers if name == channel]
        for receiver in receivers:
            receiver(data)
        return len(receivers)

    @asynccontextmanager
    async def listen(self, *channels: str) -> AsyncIterator[AsyncIterator[tuple[str, dict[str, Any]]]]:
        """Listen to channels from the moment the context is entered until it is left."""
        received: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        own = [(name, lambda data, name=name: received.put_nowait((name, data))) for name in channels]
        self._subscribers += own
        try:
            yield _drain(received)
        finally:
            self._subscribers = [entry for entry in self._subscribers if entry not in own]


async def _drain(
    received: asyncio.Queue[tuple[str, dict[str, Any]]],
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    while True:
        yield await received.get()


async def send_all(publisher: Publisher, messages: Sequence[Message]) -> None:
    """Publish the messages of one step, in order."""
    for channel, message in messages:
        await publisher.publish(channel, message)
