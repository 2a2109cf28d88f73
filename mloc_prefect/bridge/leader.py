"""Leader election: the active bridge holds a numbered lease, under which it moves records; the others stand by."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mloc_prefect.errors import FencedError, StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mloc_prefect.store.interfaces import Fence, Leases

_log = logging.getLogger(__name__)

LEASE = "bridge"
TTL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class LeaderTerm:
    """One period in which this bridge is the active one.

    Attributes:
        fence: The lease.
        fresh: The store has seen no bridge before: it is new, or was emptied.
    """

    fence: Fence
    fresh: bool


class LeaderLease:
    """Competes for the lease and works while holding it.

    Args:
        leases: The leases of the store.
        ttl: Seconds after which a holder that does not renew the lease has lost it.
        clock: Seconds, never going back.
    """

    def __init__(
        self, leases: Leases, *, ttl: float = TTL_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._leases, self._ttl, self._clock = leases, ttl, clock
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self._emptied = False
        self._complaint: type[BaseException] | None = None

    async def hold_and_work(self, work: Callable[[LeaderTerm], Awaitable[None]]) -> None:
        """Do `work` whenever this bridge is the active one, until cancelled; then release the lease.

        `work` is cancelled when the lease is lost or the store was emptied; after that it starts again.
        """
        try:
            while True:
                term = await self._acquire_term()
                if term is None:
                    await asyncio.sleep(self._ttl / 4)
                    continue
                _log.info("this bridge is active (lease number %d)", term.fence.number)
                await self._work_until_lost(term, work)
        finally:
            await self._release()

    async def _acquire_term(self) -> LeaderTerm | None:
        try:
            fence = await self._leases.acquire(LEASE, self.holder, ttl=self._ttl)
            fresh = fence is not None and (fence.number == 1 or self._emptied)
            if fence is not None and fence.number == 1:
                # Taking a second number makes a store that is emptied later noticeable: it counts from one again.
                await self._leases.release(LEASE, self.holder)
                fence = await self._leases.acquire(LEASE, self.holder, ttl=self._ttl)
        except StoreError as error:
            kind = type(error.__cause__ or error)
            if kind is not self._complaint:  # once, not at every retry
                _log.warning("could not acquire the bridge lease, will retry: %s", error.message)
            self._complaint = kind
            return None
        self._emptied, self._complaint = False, None
        return None if fence is None else LeaderTerm(fence, fresh)

    async def _work_until_lost(self, term: LeaderTerm, work: Callable[[LeaderTerm], Awaitable[None]]) -> None:
        task = asyncio.ensure_future(work(term))
        renewal = asyncio.ensure_future(self._renew(term))
        try:
            await asyncio.wait({task, renewal}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (task, renewal):
                one.cancel()
            results = await asyncio.gather(task, renewal, return_exceptions=True)
        error = results[0]
        if isinstance(error, FencedError):
            _log.warning("%s", error.message)
        elif isinstance(error, Exception):
            raise error

    async def _renew(self, term: LeaderTerm) -> None:
        """Return when the lease is lost, or the store was emptied."""
        renewed = self._clock()
        while True:
            await asyncio.sleep(self._ttl / 4)
            asked = self._clock()
            try:
                fence = await self._leases.acquire(LEASE, self.holder, ttl=self._ttl)
            except StoreError as error:
                if self._clock() - renewed > self._ttl:
                    _log.warning("the bridge lease has expired: %s", error.message)
                    return
                continue
            if fence is None or fence.number != term.fence.number:
                _log.warning("the bridge lease was taken by another bridge, or the store was emptied")
                self._emptied = fence is not None and fence.number < term.fence.number
                return
            renewed = asked

    async def _release(self) -> None:
        try:
            await self._leases.release(LEASE, self.holder)
        except StoreError as error:
            _log.info("the bridge lease was not released: %s", error.message)
