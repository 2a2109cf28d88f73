"""Connections to Redis or Valkey: an outage is known within about 2 s and named without the password."""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mloc_prefect.errors import StoreError
from mloc_prefect.redis_url import FORM, RedisUrl, RedisUrlError
from mloc_prefect.store.redis import scripts
from mloc_prefect.store.redis.script_batch import ScriptCalls

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import SecretStr

CONNECT_SECONDS = 1.0
ANSWER_SECONDS = 2.0
CONNECTIONS = 32
"""Concurrent commands of one process; more wait for a connection."""

_HEALTH_SECONDS = 10
_SETTLE_SECONDS = 2.5  # a server holds its log back for 2 s at most
_SETTLE_STEP = 0.004


class RedisClient:
    """One Redis database for one event loop. Connections are made on first use.

    Args:
        url: One of the forms of `mloc_prefect.redis_url`; may hold a password. Behind Sentinels, each new connection
            goes to the server that they name as primary at that moment.

    Attributes:
        redis: For commands.
        waiting: For blocking commands and subscriptions, which keep their connection for long.
        name: Its name in messages, e.g. `Redis at 127.0.0.1:6379`.

    Raises:
        StoreError: The URL cannot be read.
    """

    def __init__(self, url: str | SecretStr) -> None:
        text = url if isinstance(url, str) else url.get_secret_value()
        # Scripts may run again after a lost connection, but not after a timeout: they may still arrive.
        retry = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
        options: dict[str, Any] = {
            "socket_connect_timeout": CONNECT_SECONDS,
            "socket_timeout": ANSWER_SECONDS,
            "retry": retry,
            "protocol": 2,
        }
        try:
            parsed = RedisUrl.parse(text)
            commands, waiting = _pools(parsed, options)
        except (ValueError, TypeError) as error:
            # Texts of the client library may hold the URL, and so the password.
            why = str(error) if isinstance(error, RedisUrlError) else f"the form is {FORM}"
            raise StoreError("the Redis URL cannot be read", hint=f"REDIS_URL: {why}") from None
        # Any: the client annotates every answer as perhaps text, perhaps not awaitable.
        self.redis: Any = Redis.from_pool(commands)
        self.waiting: Any = Redis.from_pool(waiting)
        self.name = f"Redis at {parsed.server}"
        self._pools = (commands, waiting)
        self._scripts = ScriptCalls(self.redis)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turn every error of the client library into a StoreError that names the server."""
        try:
            yield
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreError(f"{self.name} {_problem(error)}", hint="see REDIS_URL and the log of Redis") from error

    async def script(self, text: str, keys: Sequence[str], args: Sequence[str | bytes | int | float]) -> Any:
        """Run one of `store.redis.scripts`; its text is sent only when the server does not have it."""
        with self.guard():
            return await self._scripts(text, (len(keys), *keys, *args))

    async def settle(self, aof_pending: int) -> None:
        """Wait until the server has written its log, see `store.redis.scripts`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SETTLE_SECONDS
        while aof_pending and loop.time() < deadline:
            await asyncio.sleep(_SETTLE_STEP)
            aof_pending = int(await self.script(scripts.PENDING_SYNCS, [], []))

    async def check(self) -> None:
        """Check that the server answers.

        Raises:
            StoreError: It does not.
        """
        with self.guard():
            await self.redis.ping()

    async def close(self) -> None:
        """Close all connections."""
        await self.redis.aclose()
        await self.waiting.aclose()
        for pool in self._pools:
            if isinstance(pool, SentinelConnectionPool):
                for daemon in pool.sentinel_manager.sentinels:
                    await daemon.aclose()


class _PrimaryPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to the primary that Sentinels name; callers wait for one where the plain pool would refuse."""


def _pools(url: RedisUrl, options: dict[str, Any]) -> tuple[ConnectionPool, ConnectionPool]:
    """Return the pool for commands and the one for connections that are kept for long."""
    bounded: dict[str, Any] = {"max_connections": CONNECTIONS, "timeout": ANSWER_SECONDS}
    checked: dict[str, Any] = {"health_check_interval": _HEALTH_SECONDS}
    if url.service is None:
        text = url.standalone()
        return (
            BlockingConnectionPool.from_url(text, **bounded, **options),
            ConnectionPool.from_url(text, **checked, **options),
        )
    own = {**options, **parse_url(url.standalone())}
    for name in ("host", "port", "connection_class"):  # of the one server, which the Sentinels name
        own.pop(name, None)
    # The Sentinels have a login of their own, and share what concerns TLS.
    daemons = {name: value for name, value in own.items() if name.startswith(("socket_", "ssl_"))}
    daemons |= {name: own.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in own}
    tls = {"ssl": True} if url.has_tls else {}

    def sentinel() -> Sentinel:
        # Without a try again: the next Sentinel is asked instead, and a lost one costs no time.
        once = Retry(NoBackoff(), 0)
        options = {**daemons, **tls, "protocol": 2, "retry": once}
        return Sentinel(url.members, sentinel_kwargs=options)  # type: ignore[no-untyped-call]  # the library's

    return (
        _PrimaryPool(url.service, sentinel(), **bounded, **own, **tls),  # type: ignore[no-untyped-call]
        SentinelConnectionPool(url.service, sentinel(), **checked, **own, **tls),  # type: ignore[no-untyped-call]
    )


def _problem(error: Exception) -> str:
    if isinstance(error, BusyLoadingError | AuthenticationError | ReadOnlyError):
        return f"refuses: {error}"
    if isinstance(error, RedisTimeoutError | TimeoutError):
        return "does not answer"
    if isinstance(error, RedisConnectionError | OSError):
        return f"cannot be reached: {_connection_problem(error)}"
    return f"refuses: {error}"


def _connection_problem(error: Exception) -> str:
    """Return why there is no connection, without the address, which the client library repeats."""
    text = str(error).rstrip(".")
    match = re.match(r"Error (-?\d+) connecting to \S+\. (.*)", text)
    if match is None:
        return text
    if int(match[1]) > 0 and "[SSL" not in match[2]:  # TLS counts its errors from 1, too
        return os.strerror(int(match[1]))
    return match[2]  # below 0: of the name service
