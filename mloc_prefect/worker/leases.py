"""Leases: which engines run at once on the devices of this machine.

A book hands out slots of devices (`gpu:<index>`, or `cpu`) in order of arrival. A request at the head that does not fit
yet keeps what it could use from those behind it, and nothing else, so that neither small nor large requests starve.
`FileLeaseBook` is one state file under a lock, shared by all processes of the machine; `MemoryLeaseBook` is its twin.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from uuid import uuid4

from mloc_prefect.errors import DispatchError
from mloc_prefect.worker.inventory import Inventory, matching_gpus, misfit, wanted_gpus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mloc_prefect.plan.model import ResourceRequest

_T = TypeVar("_T")
CPU = "cpu"
_POLL = 0.05  # seconds between looks of a waiting caller
_LOCK_RETRY = 0.005
_LOCK_SECONDS = 30.0  # the lock is held for well below a millisecond; longer means that its holder is stopped


@dataclass(frozen=True, slots=True)
class Lease:
    """A held resource.

    Attributes:
        id: Unique text.
        devices: `gpu:<index>` each, or `("cpu",)`.
        holder: Who has it, for people.
    """

    id: str
    devices: tuple[str, ...]
    holder: str


@dataclass(frozen=True, slots=True)
class Held:
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
    ) -> Lease:
        """Wait until `request` can be had and return it.

        Args:
            request: What is wanted; no GPU means one engine slot of the CPU.
            holder: Who asks, for people.
            on_wait: Called with a sentence whenever what is waited for changes.
            share: Name of an engine that takes several tasks at once: holders with the same name share its devices,
                as long as nobody else waits for them.

        Raises:
            DispatchError: The machine can never satisfy it, or the book cannot be written.
        """

    async def try_acquire(self, request: ResourceRequest, *, holder: str, share: str | None = None) -> Lease | None:
        """Return a lease if `request` can be had at this moment, else None; never waits and never queues.

        What those who wait in `acquire` have reserved is not taken from them.

        Raises:
            DispatchError: The machine can never satisfy it, or the book cannot be written.
        """

    async def release(self, lease: Lease) -> None:
        """Give a lease back; a second time nothing happens."""

    def snapshot(self) -> tuple[Held, ...]:
        """Return what is held now."""


@dataclass
class _Entry:
    """A holder (`devices` set) or a waiter (`candidates` and `count` set) in the book."""

    id: str
    holder: str
    pid: int
    start: str
    since: float
    ticket: int
    candidates: list[str]
    count: int
    devices: list[str] = field(default_factory=list)
    share: str = ""


@dataclass
class _State:
    next_ticket: int = 1
    held: list[_Entry] = field(default_factory=list)
    queue: list[_Entry] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, data: dict[str, Any]) -> _State:
        entries = {k: [_Entry(**e) for e in data.get(k, [])] for k in ("held", "queue")}
        return cls(int(data.get("next_ticket", 1)), **entries)

    def enqueue(self, entry: _Entry) -> None:
        entry.ticket, self.next_ticket = self.next_ticket, self.next_ticket + 1
        self.queue.append(entry)

    def drop(self, entry_id: str) -> None:
        self.held = [e for e in self.held if e.id != entry_id]
        self.queue = [e for e in self.queue if e.id != entry_id]

    def drop_dead(self) -> None:
        owners = {(e.pid, e.start) for e in (*self.held, *self.queue) if e.pid != os.getpid()}
        dead = {(pid, start) for pid, start in owners if start_mark(pid) != start}
        if dead:
            self.held = [e for e in self.held if (e.pid, e.start) not in dead]
            self.queue = [e for e in self.queue if (e.pid, e.start) not in dead]

    def take(self, entry_id: str, slots: int) -> _Entry | None:
        """Move the waiter to the holders and return it, if those before it leave it room."""
        used: dict[str, int] = {}
        engines = {(e.share or e.id, device) for e in self.held for device in e.devices}
        for _, device in engines:
            used[device] = used.get(device, 0) + 1
        for entry in sorted(self.queue, key=lambda e: e.ticket):
            free = sorted((d for d in entry.candidates if used.get(d, 0) < slots), key=lambda d: used.get(d, 0))
            if entry.id == entry_id:
                if shared := self._shared(entry):
                    free = shared
                if len(free) < entry.count:
                    return None
                entry.devices = free[: entry.count]
                self.queue.remove(entry)
                self.held.append(entry)
                return entry
            # Those before us take their share first; a head that must wait keeps all that it could use.
            fits = len(free) >= entry.count
            for device in free[: entry.count] if fits else free:
                used[device] = used.get(device, 0) + 1 if fits else slots
        return None

    def _shared(self, entry: _Entry) -> list[str]:
        """Return the devices of the engine that `entry` may join; those who wait for them longer come first."""
        held = next((e.devices for e in self.held if entry.share and e.share == entry.share), [])
        waited_for = {c for e in self.queue if e.ticket < entry.ticket for c in e.candidates if e.share != entry.share}
        fits = len(held) == entry.count and set(held) <= set(entry.candidates)
        return held if fits and not waited_for & set(held) else []

    def reason(self, entry_id: str) -> str:
        """Return what the waiter waits for, in words."""
        me = next((e for e in self.queue if e.id == entry_id), None)
        if me is None:
            return "waiting"
        what = CPU if me.candidates == [CPU] else f"{me.count} gpu of {', '.join(me.candidates)}"
        holders = [e for e in self.held if set(e.devices) & set(me.candidates)]
        by = ", ".join(f"{e.holder} (process {e.pid})" for e in holders)
        ahead = sum(e.ticket < me.ticket and bool(set(e.candidates) & set(me.candidates)) for e in self.queue)
        parts = ([f"held by {by}"] if by else []) + ([f"{ahead} ahead in the queue"] if ahead else [])
        return f"waiting for an engine slot on {what}" + (f": {', '.join(parts)}" if parts else "")


class _Book(ABC):
    """What both books share; a subclass says how the state is reached."""

    def __init__(self, inventory: Inventory, engines_per_device: int = 1) -> None:
        self.inventory = inventory
        self.slots = engines_per_device

    @abstractmethod
    def _state(self) -> AbstractContextManager[_State | None]:
        """Give the state, kept when the block ends, or None when it is locked at the moment."""

    async def acquire(
        self,
        request: ResourceRequest,
        *,
        holder: str,
        on_wait: Callable[[str], None] | None = None,
        share: str | None = None,
    ) -> Lease:
        """See `LeaseBook.acquire`."""
        entry = self._entry(request, holder, share or "")
        await self._change(lambda s: s.enqueue(entry))
        try:
            return await self._wait(entry, on_wait)
        except BaseException:
            await asyncio.shield(self._change(lambda s: s.drop(entry.id)))
            raise

    async def try_acquire(self, request: ResourceRequest, *, holder: str, share: str | None = None) -> Lease | None:
        """See `LeaseBook.try_acquire`."""
        entry = self._entry(request, holder, share or "")

        def attempt(state: _State) -> _Entry | None:
            state.drop_dead()
            state.enqueue(entry)
            taken = state.take(entry.id, self.slots)
            if taken is None:
                state.drop(entry.id)
            return taken

        taken = await self._change(attempt)
        return Lease(taken.id, tuple(taken.devices), taken.holder) if taken else None

    async def release(self, lease: Lease) -> None:
        """See `LeaseBook.release`."""
        await self._change(lambda s: s.drop(lease.id))

    def snapshot(self) -> tuple[Held, ...]:
        """See `LeaseBook.snapshot`."""
        return tuple(Held(Lease(e.id, tuple(e.devices), e.holder), e.pid, e.since) for e in self._peek().held)

    @abstractmethod
    def _peek(self) -> _State:
        """Return the state as it is now."""

    def _entry(self, request: ResourceRequest, holder: str, share: str) -> _Entry:
        count = wanted_gpus(request)
        if count and (why := misfit(request, self.inventory)):
            raise DispatchError(f"{holder} {why}")
        candidates = [f"gpu:{g.index}" for g in matching_gpus(request, self.inventory.gpus)] if count else [CPU]
        pid = os.getpid()
        mark = start_mark(pid) or ""
        return _Entry(uuid4().hex, holder, pid, mark, time.time(), 0, candidates, count or 1, share=share)

    async def _wait(self, entry: _Entry, on_wait: Callable[[str], None] | None) -> Lease:
        told = ""
        while True:
            now = time.time()

            def attempt(state: _State, now: float = now) -> tuple[_Entry | None, str]:
                state.drop_dead()
                taken = state.take(entry.id, self.slots)
                if taken is not None:
                    taken.since = now
                return taken, "" if taken else state.reason(entry.id)

            taken, why = await self._change(attempt)
            if taken is not None:
                return Lease(taken.id, tuple(taken.devices), taken.holder)
            if on_wait is not None and why != told:
                on_wait(why)
                told = why
            await asyncio.sleep(_POLL)

    async def _change(self, change: Callable[[_State], _T]) -> _T:
        end = time.monotonic() + _LOCK_SECONDS
        while time.monotonic() < end:
            with self._state() as state:
                if state is not None:
                    return change(state)
            await asyncio.sleep(_LOCK_RETRY)
        raise DispatchError("the lease book is locked by a process that does not go on", hint="see `mloc down`")


class MemoryLeaseBook(_Book):
    """A book for one process: the in-memory twin."""

    def __init__(self, inventory: Inventory, engines_per_device: int = 1) -> None:
        super().__init__(inventory, engines_per_device)
        self._now = _State()

    @contextmanager
    def _state(self) -> Iterator[_State | None]:
        yield self._now

    def _peek(self) -> _State:
        return self._now


class FileLeaseBook(_Book):
    """A book for all processes of a machine: `<home>/run/leases.json` under `leases.lock`.

    Args:
        home: State directory.
        inventory: What the machine has.
        engines_per_device: Slots of each device.
    """

    def __init__(self, home: Path, inventory: Inventory, engines_per_device: int = 1) -> None:
        super().__init__(inventory, engines_per_device)
        self._file = home / "run" / "leases.json"
        self._lock = home / "run" / "leases.lock"

    @contextmanager
    def _state(self) -> Iterator[_State | None]:
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DispatchError(f"cannot write the lease book {self._lock}: {error.strerror}") from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            state = self._peek()
            before = state.to_dict()
            yield state
            if (after := state.to_dict()) != before:
                self._save(after)
        finally:
            os.close(lock)  # and with it the lock

    def _peek(self) -> _State:
        try:
            return _State.of(json.loads(self._file.read_bytes()))
        except FileNotFoundError:
            return _State()
        except (ValueError, TypeError, AttributeError):
            return _State()  # of another version or damaged: leases are short-lived, an empty book is a safe start

    def _save(self, data: dict[str, Any]) -> None:
        part = self._file.with_suffix(".part")  # one writer at a time: we hold the lock
        try:
            part.write_text(json.dumps(data))
            part.replace(self._file)
        except OSError as error:
            raise DispatchError(f"cannot write the lease book {self._file}: {error.strerror}") from error


def start_mark(pid: int) -> str | None:
    """Return what tells process `pid` from a later one of the same number (boot and start time); None when it is dead.

    A zombie counts as dead: where process 1 does not reap, killed orphans stay in the table for ever.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rsplit(")", 1)[-1].split()
    return None if fields[0] in "ZX" else f"{_boot()}-{fields[19]}"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return ""
