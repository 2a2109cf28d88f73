"""Leases in a dictionary: the twin of `store.redis.service_leases`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mloc_prefect.store.interfaces import Fence

if TYPE_CHECKING:
    from collections.abc import Callable


class MemoryLeases:
    """Leases in a dictionary.

    Args:
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[str, tuple[str, float]] = {}
        self._numbers: dict[str, int] = {}

    async def acquire(self, name: str, holder: str, *, ttl: float) -> Fence | None:
        """Acquire or renew the lease for `ttl` seconds; None when another holder has it."""
        current, deadline = self._held.get(name, ("", 0.0))
        alive = bool(current) and self._clock() < deadline
        if alive and current != holder:
            return None
        if not alive:
            self._numbers[name] = self._numbers.get(name, 0) + 1
        self._held[name] = (holder, self._clock() + ttl)
        return Fence(name, self._numbers[name])

    async def release(self, name: str, holder: str) -> bool:
        """Release the lease; False when `holder` did not hold it."""
        current, deadline = self._held.get(name, ("", 0.0))
        if current != holder or self._clock() >= deadline:
            return False
        del self._held[name]
        return True

    def valid(self, fence: Fence) -> bool:
        """Return whether no later holder has acquired the lease."""
        return self._numbers.get(fence.name, 0) <= fence.number
