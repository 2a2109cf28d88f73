"""What the lease book knows: who holds, who waits, which engines were where; and its answer to each look."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mloc_prefect.plan.resources import memory_text
from mloc_prefect.worker.lease_rules import CPU, Entry, Load, choose, joined, kept_for, loads_of

_WARM = 8  # engines remembered for each device
_STOPPED = 10.0  # seconds without a look after which a waiter is taken to be stopped, and blocks nobody


@dataclass(frozen=True, slots=True)
class Rules:
    """What does not change while a book is in use.

    Attributes:
        slots: Engines that may have one device whole.
        patience: Seconds after which a waiter keeps what it needs from those behind it.
    """

    slots: int = 1
    patience: float = 30.0


@dataclass
class State:
    """The book's content."""

    next_ticket: int = 1
    held: list[Entry] = field(default_factory=list)
    queue: list[Entry] = field(default_factory=list)
    warm: dict[str, list[str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)

    @classmethod
    def of(cls, data: dict[str, Any]) -> State:
        """Return the state in `data`.

        Raises:
            TypeError: It is of another version.
        """
        entries = {k: [Entry(**e) for e in data.get(k, [])] for k in ("held", "queue")}
        return cls(int(data.get("next_ticket", 1)), **entries, warm=dict(data.get("warm", {})))

    def enqueue(self, entry: Entry) -> None:
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

    def take(self, entry_id: str, rules: Rules, now: float) -> Entry | None:
        """Move the waiter to the holders and return it, if those before it leave it room.

        Whoever cannot start yet is passed by smaller ones behind it, until its patience ends; from then on it keeps
        the devices it needs, so that it gets them when their holders have ended.
        """
        loads, before = loads_of(self.held), list[Entry]()
        for entry in self._order(now):
            devices = choose(entry, loads, rules.slots, self.warm)
            if entry.id == entry_id:
                return self._give(entry, joined(entry, self.held, before) or devices)
            before.append(entry)
            for device in devices or ():
                loads.setdefault(device, Load()).add(entry)
            if devices is None and now - entry.asked >= rules.patience:
                for device in kept_for(entry, loads):
                    loads.setdefault(device, Load()).kept = True
        return None

    def room(self, entry: Entry, rules: Rules, now: float, most: int) -> int:
        """Return how many like `entry` could start now, those who wait being served first; at most `most`."""
        self.queue.append(entry)
        entry.ticket = self.next_ticket
        try:
            loads = loads_of(self.held)
            for other in self._order(now):
                if other is entry:
                    break
                for device in choose(other, loads, rules.slots, self.warm) or ():
                    loads.setdefault(device, Load()).add(other)
            count = 0
            while count < most and (devices := choose(entry, loads, rules.slots, self.warm)):
                count += 1
                for device in devices:
                    loads.setdefault(device, Load()).add(entry)
            return count
        finally:
            self.queue.remove(entry)

    def reason(self, entry_id: str) -> str:
        """Return what the waiter waits for, in words."""
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

    def _order(self, now: float) -> list[Entry]:
        """Return the waiters in the order in which they are served; those whose process is stopped are left out."""
        waiting = (e for e in self.queue if now - e.looked <= _STOPPED)
        return sorted(waiting, key=lambda e: (-e.priority, e.ticket))

    def _give(self, entry: Entry, devices: list[str] | None) -> Entry | None:
        if not devices:
            return None
        entry.devices = devices
        self.queue.remove(entry)
        self.held.append(entry)
        return entry

    def _note_warm(self, entry: Entry) -> None:
        for device in entry.devices:
            others = [e for e in self.warm.get(device, []) if e != entry.engine]
            self.warm[device] = [*others, entry.engine][-_WARM:]


def start_mark(pid: int) -> str | None:
    """Return what tells process `pid` from a later one of the same number (boot and start time); None when it is dead.

    A zombie counts as dead: where process 1 does not reap, killed orphans stay in the table for ever.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rsplit(")", 1)[-1].split()
    return None if fields[0] in "ZX" else f"{boot_mark()}-{fields[19]}"


def boot_mark() -> str:
    """Return 8 hexadecimal digits of this machine's boot, "" where there are none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return ""


def _wish(entry: Entry) -> str:
    if not entry.candidates:
        return f"{entry.count} gpu: processes of others hold the memory of all that would do"
    if list(entry.candidates) == [CPU]:
        return "an engine slot on cpu"
    what = f"{memory_text(entry.part)} on" if entry.part else "an engine slot on"
    return f"{what} {entry.count} gpu of {', '.join(entry.candidates)}"
