"""The Redis databases of one `mloc up`: in its own Valkey, or in the server of `REDIS_URL`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from mloc_prefect.errors import DispatchError
from mloc_prefect.process.exposure import LOOPBACK
from mloc_prefect.process.start_watch import LIMIT_SECONDS
from mloc_prefect.redis_url import RedisUrl, RedisUrlError
from mloc_prefect.services.valkey import EmbeddedValkey

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.services.up.stack_config import StackConfig

MLOC, MESSAGING, DOCKET = 0, 1, 2
"""Databases: MLOC's own keys, Prefect's events, Prefect's background jobs. For `REDIS_URL`, counted from its own."""

_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class RedisDatabases:
    """URLs with passwords; never shown.

    Attributes:
        mloc: MLOC's keys and channels.
        messaging: Events of the embedded Prefect server.
        docket: Background jobs of the embedded Prefect server.
        embedded: The Valkey to start, or None when `REDIS_URL` names another server.
    """

    mloc: str
    messaging: str
    docket: str
    embedded: EmbeddedValkey | None = None


def databases(stack: StackConfig) -> RedisDatabases:
    """Return the databases of `stack`.

    Raises:
        DispatchError: The path of `REDIS_URL` is no database number.
    """
    if stack.external_redis is not None:
        url = stack.external_redis
        return RedisDatabases(_with_offset(url, MLOC), _with_offset(url, MESSAGING), _with_offset(url, DOCKET))
    assert stack.redis_port is not None
    valkey = EmbeddedValkey(stack.home, stack.redis_port, stack.fsync, host=stack.host, exact=True)
    base = f"redis://:{quote(valkey.password(), safe='')}@{LOOPBACK}:{stack.redis_port}"  # it always listens there
    return RedisDatabases(f"{base}/{MLOC}", f"{base}/{MESSAGING}", f"{base}/{DOCKET}", embedded=valkey)


class RedisPart:
    """The embedded Valkey as a part of `mloc up`.

    Args:
        valkey: The server.
        limit: Seconds without progress after which a start is given up.
        on_progress: Called with what a start waits for.
    """

    name = "redis"

    def __init__(
        self,
        valkey: EmbeddedValkey,
        *,
        limit: float = LIMIT_SECONDS,
        on_progress: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._limit = limit
        self._on_progress = on_progress
        self.log = valkey.log
        self._valkey = valkey
        self._pid: int | None = None

    @property
    def pid(self) -> int | None:
        """Its process while it runs."""
        return self._pid if self._valkey.running else None

    async def start(self) -> None:
        """Start it and return when it answers; see `Part`."""
        self._pid = (await self._valkey.ready(limit=self._limit, on_progress=self._on_progress)).pid

    async def ended(self) -> str:
        """Wait until it has ended; return how, as text."""
        while self._valkey.running:
            await asyncio.sleep(_POLL_SECONDS)
        return self._valkey.ending or "stopped"

    async def stop(self, grace: float) -> None:
        """End it; it has its own grace, in which it puts its log on disk."""
        del grace
        await self._valkey.stop()


def _with_offset(url: str, offset: int) -> str:
    """Return `url` with `offset` added to its database number."""
    try:
        return RedisUrl.parse(url).with_database(offset)
    except RedisUrlError as error:
        raise DispatchError(
            f"REDIS_URL cannot be used by `mloc up`: {error}", hint="write it as redis://[:PASSWORD@]HOST:PORT/DATABASE"
        ) from None
