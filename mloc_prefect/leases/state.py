"""Content of a lease book: holders, waiters, and which engines were on which device; and whose turn it is."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any

from mloc_prefect.leases.rules import CPU, DeviceLoad, LeaseEntry, choose, joined, kept_for, loads_of
from mloc_prefect.plan.resources import memory_text
from mloc_prefect.process.proc import start_mark

_WARM = 8  # engines remembered for each device
_STOPPED = 10.0  # seconds without a check after which a waiter counts as paused, and blocks no one


@dataclass(frozen=True, slots=True)
class LeaseRules:
    """Settings of a book.

    Attributes:
        slots: Engines that may have one device whole.
        patience: Seconds after which a waiter keeps what it needs from those behind it.
    """

    slots: int = 1
    patience: float = 30.0


@dataclass
class LeaseState:
    """The book's content."""

    next_ticket: int = 1
    held: list[LeaseEntry] = field(default_factory=list)
    queue: list[LeaseEntry] = field(default_factory=list)
    warm: dict[str, list[str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)

    @classmethod
    def of(cls, data: dict[str, Any]) -> LeaseState:
        """Return the state in `data`.

        Raises:
            TypeError: It is of another version.
        """
        entries = {k: [LeaseEntry(**e) for e in data.get(k, [])] for k in ("held", "queue")}
        return cls(int(data.get("next_ticket", 1)), **entries, warm=dict(data.get("warm", {})))

    def enqueue(self, entry: LeaseEntry) -> None:
        """Put a waiter behind those of its priority."""
        entry.ticket, self.next_ticket = self.next_ticket, self.next_ticket + 1
        self.queue.append(entry)

    def drop(self, entry_id: str) -> None:
        """Forget a holder or waiter."""
        for entry in self.held:
            if entry.id == entry_id and entry.engine:
                self._note_warm(entry)
        self.held = [e for e in self.held if e.id != entry_id]
        self.queue = [e for e in self.queue if e.id != entry_id]

    def drop_dead(self) -> None:
        """Forget holders and waiters whose process has ended."""
        owners = {(e.pid, e.start) for e in (*self.held, *self.queue) if e.pid != os.getpid()}
        dead = {(pid, start) for pid, start in owners if start_mark(pid) != start}
        if dead:
            self.held = [e for e in self.held if (e.pid, e.start) not in dead]
            self.queue = [e for e in self.queue if (e.pid, e.start) not in dead]

    def take(self, entry_id: str, rules: LeaseRules, now: float) -> LeaseEntry | None:
        """Move the waiter to the holders and return it, if those before it leave it room.

        Smaller entries pass one that cannot start yet, until its patience ends; from then on it reserves the devices
        that it needs, and gets them when their holders have ended.
        """
        loads, before = loads_of(self.held), list[LeaseEntry]()
        for entry in self._order(now):
            devices = choose(entry, loads, rules.slots, self.warm)
            if entry.id == entry_id:
                return self._give(entry, joined(entry, self.held, before) or devices)
            before.append(entry)
            for device in devices or ():
                loads.setdefault(device, DeviceLoad()).add(entry)
            if devices is None and now - entry.asked >= rules.patience:
                for device in kept_for(entry, loads):
                    loads.setdefault(device, DeviceLoad()).kept = True
        return None

    def room(self, entry: LeaseEntry, rules: LeaseRules, now: float, most: int) -> int:
        """Return how many entries like `entry` could start now, after all waiters; at most `most`."""
        self.queue.append(entry)
        entry.ticket = self.next_ticket
        try:
            loads = loads_of(self.held)
            for other in self._order(now):
                if other is entry:
                    break
                for device in choose(other, loads, rules.slots, self.warm) or ():
                    loads.setdefault(device, DeviceLoad()).add(other)
            count = 0
            while count < most and (devices := choose(entry, loads, rules.slots, self.warm)):
                count += 1
                for device in devices:
                    loads.setdefault(device, DeviceLoad()).add(entry)
            return count
        finally:
            self.queue.remove(entry)

    def reason(self, entry_id: str) -> str:
        """Return as text what the waiter waits for."""
        me = next((e for e in self.queue if e.id == entry_id), None)
        if me is None:
            return "waiting"
        holders = [e for e in self.held if set(e.devices) & set(me.candidates)]
        by = ", ".join(f"{e.holder} (process {e.pid})" for e in holders)
        order = self._order(me.looked)
        ahead = (
            sum(bool(set(e.candidates) & set(me.candidates)) for e in order[: order.index(me)]) if me in order else 0
        )
        parts = ([f"held by {by}"] if by else []) + ([f"{ahead} ahead in the queue"] if ahead else [])
        return f"waiting for {_wish(me)}" + (f": {', '.join(parts)}" if parts else "")

    def _order(self, now: float) -> list[LeaseEntry]:
        """Return the waiters in the order in which they are served; those whose process is paused are left out."""
        waiting = (e for e in self.queue if now - e.looked <= _STOPPED)
        return sorted(waiting, key=lambda e: (-e.priority, e.ticket))

    def _give(self, entry: LeaseEntry, devices: list[str] | None) -> LeaseEntry | None:
        if not devices:
            return None
        entry.devices = devices
        self.queue.remove(entry)
        self.held.append(entry)
        return entry

    def _note_warm(self, entry: LeaseEntry) -> None:
        for device in entry.devices:
            others = [e for e in self.warm.get(device, []) if e != entry.engine]
            self.warm[device] = [*others, entry.engine][-_WARM:]


def _wish(entry: LeaseEntry) -> str:
    if not entry.candidates:
        return f"{entry.count} gpu: processes of others hold the memory of all that would do"
    if list(entry.candidates) == [CPU]:
        return "an engine slot on cpu"
    what = f"{memory_text(entry.part)} on" if entry.part else "an engine slot on"
    return f"{what} {entry.count} gpu of {', '.join(entry.candidates)}"
