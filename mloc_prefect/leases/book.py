"""The lease book: its protocol, what all books share, and the book of one process."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar
from uuid import uuid4

from mloc_prefect.errors import DispatchError
from mloc_prefect.hardware.inventory import Inventory, misfit, wanted_gpus
from mloc_prefect.leases.rules import DeviceLoad, LeaseEntry, candidates_of, loads_of, part_of, share_of
from mloc_prefect.leases.state import LeaseRules, LeaseState
from mloc_prefect.process.proc import start_mark

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mloc_prefect.plan.resources import ResourceRequest

logger = logging.getLogger("prefect.mloc.worker")

_T = TypeVar("_T")
_POLL = 0.05  # seconds between checks of a waiting caller
_LOCK_RETRY = 0.005
_LOCK_SECONDS = 30.0  # the lock is held for far less than a millisecond; longer means that its holder is paused
_LOOK_SECONDS = 2.0  # how old the known memory use of the devices may be
_BEAT = 1.0  # seconds between two notes that a waiter still checks


@dataclass(frozen=True, slots=True)
class Lease:
    """A held resource.

    Attributes:
        id: Unique text.
        devices: `gpu:<index>` each, or `("cpu",)`.
        holder: Who has it, for people.
        share: Share of each device's memory that the holder may use, over 0 to 1.
        memory_bytes: The same in bytes, where the task stated it; 0 = whole devices.
    """

    id: str
    devices: tuple[str, ...]
    holder: str
    share: float = 1.0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class HeldLease:
    """One row of a snapshot.

    Attributes:
        lease: The lease.
        pid: Process that holds it.
        since: Seconds since the epoch.
    """

    lease: Lease
    pid: int
    since: float


class LeaseBook(Protocol):
    """Hands out leases. All methods are safe to call from several tasks (file: several processes) at once."""

    async def acquire(
        self,
        request: ResourceRequest,
        *,
        holder: str,
        on_wait: Callable[[str], None] | None = None,
        share: str | None = None,
        engine: str | None = None,
        priority: int = 0,
        waited: float = 0.0,
    ) -> Lease:
        """Wait until `request` can be satisfied and return the lease.

        Larger priorities are served first, then earlier requests. Smaller requests pass one that does not fit yet,
        until it has waited for the book's patience; then it reserves what it needs.

        Args:
            request: What is wanted; no GPU means one engine slot of the CPU.
            holder: Who asks, for people.
            on_wait: Called with a text whenever the reason of the wait changes.
            share: Name of an engine that takes several tasks at once: holders with the same name share its devices,
                as long as no one else waits for them.
            engine: Name of an engine that takes one task at a time; devices on which it ran before are preferred.
            priority: `spec.priority`.
            waited: Seconds that it has waited elsewhere already; they count for the patience.

        Raises:
            DispatchError: The machine can never satisfy it, or the book cannot be written.
        """

    async def try_acquire(
        self,
        request: ResourceRequest,
        *,
        holder: str,
        share: str | None = None,
        engine: str | None = None,
        priority: int = 0,
    ) -> Lease | None:
        """Return a lease if `request` can be satisfied at this moment, else None; never waits and never queues.

        It takes nothing that waiters in `acquire` have reserved, unless their priority is smaller.
        Arguments as `acquire`.

        Raises:
            DispatchError: The machine can never satisfy it, or the book cannot be written.
        """

    async def room(self, request: ResourceRequest, *, most: int = 64) -> int:
        """Return how many leases for `request` are possible at this moment, at most `most`; 0 when it never fits."""

    async def release(self, lease: Lease) -> None:
        """Give a lease back; a second time nothing happens.

        When the book cannot be written, that happens together with its next change.
        """

    def snapshot(self) -> tuple[HeldLease, ...]:
        """Return the leases that are held now."""


class Book(ABC):
    """What all books share; a subclass says how the state is reached.

    Args:
        inventory: What the machine has.
        engines_per_device: Engines that may have one device whole.
        patience: Seconds after which a waiter keeps what it needs from those behind it.
        look: Reads the inventory again, for memory that other processes hold by now; None = it does not change.
    """

    def __init__(
        self,
        inventory: Inventory,
        engines_per_device: int = 1,
        *,
        patience: float = 30.0,
        look: Callable[[], Inventory] | None = None,
    ) -> None:
        self.inventory = inventory
        self.rules = LeaseRules(engines_per_device, patience)
        self._look = look
        self._looked = time.monotonic()
        self._dropped: set[str] = set()

    @abstractmethod
    def _state(self) -> AbstractContextManager[LeaseState | None]:
        """Give the state, kept when the block ends, or None when it is locked at the moment."""

    @abstractmethod
    def _peek(self) -> LeaseState:
        """Return the state as it is now."""

    async def acquire(
        self,
        request: ResourceRequest,
        *,
        holder: str,
        on_wait: Callable[[str], None] | None = None,
        share: str | None = None,
        engine: str | None = None,
        priority: int = 0,
        waited: float = 0.0,
    ) -> Lease:
        """See `LeaseBook.acquire`."""
        await self.refresh_inventory()
        entry = self._entry(request, holder, share, engine, priority)
        entry.asked -= waited
        await self._change(lambda s: s.enqueue(entry))
        try:
            return await self._wait(entry, request, on_wait)
        except BaseException:
            await asyncio.shield(self._forget(entry.id, holder))
            raise

    async def try_acquire(
        self,
        request: ResourceRequest,
        *,
        holder: str,
        share: str | None = None,
        engine: str | None = None,
        priority: int = 0,
    ) -> Lease | None:
        """See `LeaseBook.try_acquire`."""
        await self.refresh_inventory()
        entry = self._entry(request, holder, share, engine, priority)

        def attempt(state: LeaseState) -> LeaseEntry | None:
            state.drop_dead()
            state.enqueue(entry)
            taken = state.take(entry.id, self.rules, entry.looked)
            if taken is None:
                state.drop(entry.id)
            return taken

        taken = await self._change(attempt)
        return self._lease(taken) if taken else None

    async def room(self, request: ResourceRequest, *, most: int = 64) -> int:
        """See `LeaseBook.room`."""
        await self.refresh_inventory()
        if misfit(request, self.inventory):
            return 0
        entry = self._entry(request, "", None, None)

        def count(state: LeaseState) -> int:
            state.drop_dead()
            return state.room(entry, self.rules, entry.looked, most)

        return await self._change(count)

    async def release(self, lease: Lease) -> None:
        """See `LeaseBook.release`."""
        await self._forget(lease.id, lease.holder)

    async def refresh_inventory(self) -> None:
        """Read the inventory again when it may have changed."""
        if self._look is None or time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        self.inventory = await asyncio.to_thread(self._look)

    def snapshot(self) -> tuple[HeldLease, ...]:
        """See `LeaseBook.snapshot`."""
        return tuple(HeldLease(self._lease(e), e.pid, e.since) for e in self._peek().held)

    def loads(self) -> dict[str, DeviceLoad]:
        """Return what is in use of each device now; tasks that share an engine count once."""
        return loads_of(self._peek().held)

    def _lease(self, entry: LeaseEntry) -> Lease:
        return Lease(entry.id, tuple(entry.devices), entry.holder, share_of(entry, self.inventory), entry.part)

    def _entry(
        self, request: ResourceRequest, holder: str, share: str | None, engine: str | None, priority: int = 0
    ) -> LeaseEntry:
        if why := wanted_gpus(request) and misfit(request, self.inventory):
            raise DispatchError(f"{holder} {why}")
        pid, now = os.getpid(), time.monotonic()
        return LeaseEntry(
            id=uuid4().hex,
            holder=holder,
            pid=pid,
            start=start_mark(pid) or "",
            candidates=candidates_of(request, self.inventory),
            count=wanted_gpus(request) or 1,
            need=request.gpu_memory_bytes or 0,
            part=part_of(request, self.inventory),
            engine=share or engine or "",
            shares=share is not None,
            priority=priority,
            since=time.time(),
            asked=now,
            looked=now,
        )

    async def _wait(self, entry: LeaseEntry, request: ResourceRequest, on_wait: Callable[[str], None] | None) -> Lease:
        reported = ""
        while True:
            taken, why = await self._change(lambda s: self._attempt(s, entry, request))
            if taken is not None:
                return self._lease(taken)
            if on_wait is not None and why != reported:
                on_wait(why)
                reported = why
            await asyncio.sleep(_POLL)
            await self.refresh_inventory()

    def _attempt(self, state: LeaseState, entry: LeaseEntry, request: ResourceRequest) -> tuple[LeaseEntry | None, str]:
        state.drop_dead()
        now = time.monotonic()
        mine = next((e for e in state.queue if e.id == entry.id), None)
        if mine is None:  # the book was lost, and started empty
            state.enqueue(entry)
            mine = entry
        if now - mine.looked >= _BEAT:
            mine.looked = now
        mine.candidates = candidates_of(request, self.inventory)
        taken = state.take(entry.id, self.rules, now)
        if taken is None:
            return None, state.reason(entry.id)
        taken.since = time.time()
        return taken, ""

    async def _forget(self, entry_id: str, holder: str) -> None:
        """Drop a holder or waiter; when the book cannot be written, together with the next change of it."""
        self._dropped.add(entry_id)
        try:
            await self._change(lambda _: None)
        except DispatchError as error:
            logger.warning("%s will be removed from the lease book later: %s", holder, error.message)

    async def _change(self, change: Callable[[LeaseState], _T]) -> _T:
        end = time.monotonic() + _LOCK_SECONDS
        while time.monotonic() < end:
            with self._state() as state:
                if state is not None:
                    dropped = self._dropped.copy()
                    for entry_id in dropped:
                        state.drop(entry_id)
                    result = change(state)
            if state is not None:  # and kept by now
                self._dropped -= dropped
                return result
            await asyncio.sleep(_LOCK_RETRY)
        raise DispatchError("the lease book is locked by a process that does not respond", hint="see `mloc down`")


class MemoryLeaseBook(Book):
    """A book for one process: the in-memory twin of `FileLeaseBook`; arguments as `Book`."""

    def __init__(
        self,
        inventory: Inventory,
        engines_per_device: int = 1,
        *,
        patience: float = 30.0,
        look: Callable[[], Inventory] | None = None,
    ) -> None:
        super().__init__(inventory, engines_per_device, patience=patience, look=look)
        self._now = LeaseState()

    @contextmanager
    def _state(self) -> Iterator[LeaseState | None]:
        yield self._now

    def _peek(self) -> LeaseState:
        return self._now
