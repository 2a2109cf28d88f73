"""Leases in Redis: `mloc:lease:<name>` with a lifetime, and its number, which only grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mloc_prefect.store.interfaces import Fence
from mloc_prefect.store.redis import scripts

if TYPE_CHECKING:
    from mloc_prefect.store.redis.redis_client import RedisClient


class RedisLeases:
    """`Leases` in Redis."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def acquire(self, name: str, holder: str, *, ttl: float) -> Fence | None:
        """Acquire or renew the lease for `ttl` seconds; None when another holder has it."""
        keys = [_key(name), number_key(name)]
        number = await self._client.script(scripts.ACQUIRE, keys, [holder, int(1000 * ttl)])
        return None if number is None else Fence(name, number)

    async def release(self, name: str, holder: str) -> bool:
        """Release the lease; False when `holder` did not hold it."""
        return bool(await self._client.script(scripts.RELEASE, [_key(name)], [holder]))


def number_key(name: str) -> str:
    """Return the key of a lease's number."""
    return f"{_key(name)}:number"


def _key(name: str) -> str:
    return f"mloc:lease:{name}"
