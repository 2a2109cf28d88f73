"""Messages over Redis channels."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from redis.asyncio.client import PubSub

    from mloc_prefect.store.redis.redis_client import RedisClient

_log = logging.getLogger(__name__)
_POLL_SECONDS = 1.0
_RETRY_SECONDS = 0.5


class RedisPublisher:
    """A `Publisher` on Redis channels."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def publish(self, channel: str, message: Mapping[str, Any]) -> int:
        """Send one message; return the number of receivers."""
        with self._client.guard():
            return int(await self._client.redis.publish(channel, json.dumps(message, ensure_ascii=False)))

    @asynccontextmanager
    async def listen(self, *channels: str) -> AsyncIterator[AsyncIterator[tuple[str, dict[str, Any]]]]:
        """Listen to channels from the moment the context is entered until it is left."""
        pubsub = self._client.waiting.pubsub()
        try:
            with self._client.guard():
                await pubsub.subscribe(*channels)
                for _ in channels:  # the server sends messages only after one confirmation for each channel
                    await pubsub.get_message(timeout=_POLL_SECONDS)
            yield self._messages(pubsub)
        finally:
            await pubsub.aclose()

    async def _messages(self, pubsub: PubSub) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        connected = True
        while True:
            try:
                found = await pubsub.get_message(ignore_subscribe_messages=True, timeout=_POLL_SECONDS)
            except (RedisError, OSError) as error:
                if connected:
                    _log.warning("%s: lost the subscription, will retry: %s", self._client.name, error)
                connected = False
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            if not connected:
                _log.info("%s: subscribed again", self._client.name)
                connected = True
            data = _object(found["data"]) if found else None
            if found and data is not None:
                yield found["channel"].decode(), data


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):  # any client may publish, nested as deeply as it likes
        return None
    return value if isinstance(value, dict) else None
