"""Connections to Redis or Valkey: an unreachable one is known within about 2 s, and named without its password."""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mloc_prefect.bridge import scripts
from mloc_prefect.bridge.redis_batch import ScriptCalls
from mloc_prefect.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import SecretStr

CONNECT_SECONDS = 1.0
ANSWER_SECONDS = 2.0
CONNECTIONS = 32
"""Commands of one process at once; more wait for their turn."""

_HEALTH_SECONDS = 10
_SETTLE_SECONDS = 2.5  # a server holds its log back for 2 s at most
_SETTLE_STEP = 0.004


class RedisClient:
    """One Redis database for one event loop. Connections are made when they are needed.

    Args:
        url: `redis://`, `rediss://` or `unix://`, also with `valkey` in the place of `redis`; may hold a password.

    Attributes:
        redis: For commands.
        waiting: For commands that wait and for subscriptions: each may hold its connection for long.
        name: What messages call it, e.g. `Redis at 127.0.0.1:6379`.

    Raises:
        StoreError: The URL cannot be read.
    """

    def __init__(self, url: str | SecretStr) -> None:
        text = url if isinstance(url, str) else url.get_secret_value()
        scheme, _, rest = text.partition("://")
        text = f"{scheme.replace('valkey', 'redis', 1)}://{rest}"
        # The scripts may be run again after a lost connection; after a timeout they may still be on their way.
        retry = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
        options: dict[str, Any] = {
            "socket_connect_timeout": CONNECT_SECONDS,
            "socket_timeout": ANSWER_SECONDS,
            "retry": retry,
            "protocol": 2,
        }
        try:
            commands = BlockingConnectionPool.from_url(
                text, max_connections=CONNECTIONS, timeout=ANSWER_SECONDS, **options
            )
            waiting = ConnectionPool.from_url(text, health_check_interval=_HEALTH_SECONDS, **options)
        except (ValueError, TypeError):
            # The text of the error may hold the URL, and so the password.
            raise StoreError(
                "the Redis URL cannot be read", hint="REDIS_URL has the form redis://[:PASSWORD@]HOST:PORT/DATABASE"
            ) from None
        # Any: the client's annotations say of each answer that it may be text, or not be awaitable.
        self.redis: Any = Redis.from_pool(commands)
        self.waiting: Any = Redis.from_pool(waiting)
        self.name = _name(commands)
        self._scripts = ScriptCalls(self.redis)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turn every error of the client library into a StoreError that names the server."""
        try:
            yield
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreError(f"{self.name} {_complaint(error)}", hint="see REDIS_URL and the log of Redis") from error

    async def script(self, text: str, keys: Sequence[str], args: Sequence[str | bytes | int | float]) -> Any:
        """Run one of `bridge.scripts`; sends its text only when the server does not have it."""
        with self.guard():
            return await self._scripts(text, (len(keys), *keys, *args))

    async def settle(self, aof_pending: int) -> None:
        """Wait until what the server has answered is in its log, see `bridge.scripts`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SETTLE_SECONDS
        while aof_pending and loop.time() < deadline:
            await asyncio.sleep(_SETTLE_STEP)
            aof_pending = int(await self.script(scripts.PENDING_SYNCS, [], []))

    async def check(self) -> None:
        """Ask for a sign of life.

        Raises:
            StoreError: There is none.
        """
        with self.guard():
            await self.redis.ping()

    async def close(self) -> None:
        """Close all connections."""
        await self.redis.aclose()
        await self.waiting.aclose()


def _complaint(error: Exception) -> str:
    if isinstance(error, BusyLoadingError | AuthenticationError | ReadOnlyError):
        return f"refuses: {error}"
    if isinstance(error, RedisTimeoutError | TimeoutError):
        return "does not answer"
    if isinstance(error, RedisConnectionError | OSError):
        return f"cannot be reached: {_reason(error)}"
    return f"refuses: {error}"


def _reason(error: Exception) -> str:
    """Return why there is no connection: the system's words, where the client library only adds the address again."""
    text = str(error).rstrip(".")
    match = re.match(r"Error (-?\d+) connecting to \S+\. (.*)", text)
    if match is None:
        return text
    return os.strerror(int(match[1])) if int(match[1]) > 0 else match[2]  # below 0: of the name service


def _name(pool: ConnectionPool) -> str:
    options = pool.connection_kwargs
    path = options.get("path")
    return f"Redis at {path or '{}:{}'.format(options.get('host', 'localhost'), options.get('port', 6379))}"
