"""Leases in Redis: `mloc:lease:<name>` with a lifetime, and its number, which only grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mloc_prefect.bridge import scripts
from mloc_prefect.bridge.ports import Fence

if TYPE_CHECKING:
    from mloc_prefect.bridge.redis_client import RedisClient


class RedisLeases:
    """The leases of `bridge.ports` in Redis."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def acquire(self, name: str, holder: str, *, ttl: float) -> Fence | None:
        """Take the lease for `ttl` seconds, or prolong one's own; None when another holds it."""
        keys = [_key(name), number_key(name)]
        number = await self._client.script(scripts.ACQUIRE, keys, [holder, int(1000 * ttl)])
        return None if number is None else Fence(name, number)

    async def release(self, name: str, holder: str) -> bool:
        """Give it back; returns False when `holder` did not hold it."""
        return bool(await self._client.script(scripts.RELEASE, [_key(name)], [holder]))


def number_key(name: str) -> str:
    """Return the key of a lease's number."""
    return f"{_key(name)}:number"


def _key(name: str) -> str:
    return f"mloc:lease:{name}"
