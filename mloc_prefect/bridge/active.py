"""One bridge is active at a time: it holds a lease with a number, under which it moves records; others stand by."""

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

    from mloc_prefect.bridge.ports import Fence, Leases

_log = logging.getLogger(__name__)

LEASE = "bridge"
TTL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Term:
    """One time of being active.

    Attributes:
        fence: The lease.
        fresh: The store knows of no bridge before: it is new, or was emptied.
    """

    fence: Fence
    fresh: bool


class ActiveLease:
    """Competes for the lease and works while it has it.

    Args:
        leases: Where it is.
        ttl: Seconds after which a holder that is not heard of has lost it.
        clock: Seconds, never going back.
    """

    def __init__(
        self, leases: Leases, *, ttl: float = TTL_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._leases, self._ttl, self._clock = leases, ttl, clock
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self._emptied = False
        self._complaint = ""

    async def run(self, work: Callable[[Term], Awaitable[None]]) -> None:
        """Do `work` whenever this is the active bridge, until cancelled; then give the lease back.

        `work` is cancelled when the lease is lost, and when the store was emptied; then it starts again.
        """
        try:
            while True:
                term = await self._won()
                if term is None:
                    await asyncio.sleep(self._ttl / 4)
                    continue
                _log.info("this bridge is active (number %d)", term.fence.number)
                await self._hold(term, work)
        finally:
            await self._give_back()

    async def _won(self) -> Term | None:
        try:
            fence = await self._leases.acquire(LEASE, self.holder, ttl=self._ttl)
            fresh = fence is not None and (fence.number == 1 or self._emptied)
            if fence is not None and fence.number == 1:
                # With a second number, a store that is emptied later shows it: it counts from one again.
                await self._leases.release(LEASE, self.holder)
                fence = await self._leases.acquire(LEASE, self.holder, ttl=self._ttl)
        except StoreError as error:
            if error.message != self._complaint:  # once, not at every try
                _log.warning("no bridge can be active: %s", error.message)
            self._complaint = error.message
            return None
        self._emptied, self._complaint = False, ""
        return None if fence is None else Term(fence, fresh)

    async def _hold(self, term: Term, work: Callable[[Term], Awaitable[None]]) -> None:
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

    async def _renew(self, term: Term) -> None:
        """Return when the lease is lost, or the store was emptied."""
        renewed = self._clock()
        while True:
            await asyncio.sleep(self._ttl / 4)
            asked = self._clock()
            try:
                fence = await self._leases.acquire(LEASE, self.holder, ttl=self._ttl)
            except StoreError as error:
                if self._clock() - renewed > self._ttl:
                    _log.warning("the lease has run out: %s", error.message)
                    return
                continue
            if fence is None or fence.number != term.fence.number:
                _log.warning("the lease is lost, or the store was emptied")
                self._emptied = fence is not None and fence.number < term.fence.number
                return
            renewed = asked

    async def _give_back(self) -> None:
        try:
            await self._leases.release(LEASE, self.holder)
        except StoreError as error:
            _log.info("the lease was not given back: %s", error.message)
