"""Where the databases of one `mloc up` lie: in its own Valkey, or beside those of `REDIS_URL`."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from mloc_prefect.bridge.exposure import LOOPBACK
from mloc_prefect.bridge.valkey import EmbeddedValkey
from mloc_prefect.errors import DispatchError

if TYPE_CHECKING:
    from mloc_prefect.up.stack import Stack

MLOC, MESSAGING, DOCKET = 0, 1, 2
"""Databases: MLOC's own keys, Prefect's events, Prefect's background jobs. For `REDIS_URL`, counted from its own."""

_LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Databases:
    """URLs with passwords; not for people.

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


def databases(stack: Stack) -> Databases:
    """Return the databases of `stack`.

    Raises:
        DispatchError: The path of `REDIS_URL` is no database number.
    """
    if stack.external_redis is not None:
        url = stack.external_redis
        return Databases(_moved(url, MLOC), _moved(url, MESSAGING), _moved(url, DOCKET))
    assert stack.redis_port is not None
    valkey = EmbeddedValkey(stack.home, stack.redis_port, stack.fsync, host=stack.host, exact=True)
    base = f"redis://:{quote(valkey.password(), safe='')}@{LOOPBACK}:{stack.redis_port}"  # it listens there, too
    return Databases(f"{base}/{MLOC}", f"{base}/{MESSAGING}", f"{base}/{DOCKET}", embedded=valkey)


class RedisPart:
    """The embedded Valkey as a part of `mloc up`.

    Args:
        valkey: The server.
    """

    name = "redis"

    def __init__(self, valkey: EmbeddedValkey) -> None:
        self.log = valkey.log
        self._valkey = valkey
        self._pid: int | None = None

    @property
    def pid(self) -> int | None:
        """Its process while it runs."""
        return self._pid if self._valkey.running else None

    async def start(self) -> None:
        """Start it and return when it answers; see `Part`."""
        self._pid = (await self._valkey.ready()).pid

    async def ended(self) -> str:
        """Wait until it has ended; returns how, in words."""
        while self._valkey.running:
            await asyncio.sleep(_LOOK_SECONDS)
        try:
            self._valkey.poll()
        except DispatchError as error:
            how = re.search(r"\((exit status \d+)\)", error.message)
            return how[1] if how else error.message
        return "stopped"

    async def stop(self, grace: float) -> None:
        """End it; it has its own grace, in which it puts its log on disk."""
        del grace
        await self._valkey.stop()


def _moved(url: str, offset: int) -> str:
    """Return `url` with `offset` added to its database number."""
    parts = urlsplit(url)
    scheme = parts.scheme.replace("valkey", "redis", 1)  # prefect-redis knows only that name
    if scheme == "unix":
        raise DispatchError(
            "`mloc up` cannot use a unix socket as REDIS_URL", hint="write it as redis://HOST:PORT/DATABASE"
        )
    if not re.fullmatch(r"/?\d*", parts.path):
        raise DispatchError(
            f"the database of REDIS_URL is not a number: {parts.path.strip('/')!r}",
            hint="write it as redis://[:PASSWORD@]HOST:PORT/DATABASE",
        )
    number = int(parts.path.strip("/") or 0)
    return parts._replace(scheme=scheme, path=f"/{number + offset}").geturl()
