"""Rules of the lease book: which devices an entry may have. They keep no state.

A device holds either engines that have it whole (`engines_per_device` of them), or engines that each asked for a part
of its memory, as many as fit. `cpu` is a device without a stated memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mloc_prefect.hardware.gpus import matching_gpus, wanted_gpus

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from mloc_prefect.hardware.inventory import Inventory
    from mloc_prefect.plan.resources import ResourceRequest

CPU = "cpu"
_LEAST_SHARE = 0.5  # a task without a memory request skips a card of which other processes hold more than half


@dataclass
class LeaseEntry:
    """A holder (`devices` set) or a waiter in the book.

    Attributes:
        id: Unique text.
        holder: Who asks, for people.
        pid: Process that asks.
        start: Mark that distinguishes it from a later process with the same number.
        candidates: Devices that would do, with the bytes that are there for us (0 = not known).
        count: How many of them.
        need: Bytes that each must have (0 = not stated).
        part: Bytes of each that are taken; 0 = the whole device.
        engine: Name of the engine, "" when it has none.
        shares: Holders with the same engine share its devices.
        priority: Larger comes first.
        since: Seconds since the epoch.
        asked: Monotonic time of this machine from which its patience counts.
        looked: Monotonic time of its last check; a waiter whose process is paused blocks no one.
        ticket: Place in the order of arrival.
        devices: What it holds.
    """

    id: str
    holder: str
    pid: int
    start: str
    candidates: dict[str, int]
    count: int
    need: int = 0
    part: int = 0
    engine: str = ""
    shares: bool = False
    priority: int = 0
    since: float = 0.0
    asked: float = 0.0
    looked: float = 0.0
    ticket: int = 0
    devices: list[str] = field(default_factory=list)

    @property
    def group(self) -> str:
        """What counts as one engine on a device."""
        return self.engine if self.shares else self.id


@dataclass
class DeviceLoad:
    """What is in use of one device.

    Attributes:
        whole: Engines that have it whole.
        packed: Bytes of those that have a part.
        kept: Reserved by a waiter whose patience has ended.
    """

    whole: int = 0
    packed: int = 0
    kept: bool = False

    def add(self, entry: LeaseEntry) -> None:
        """Count one more engine."""
        self.packed += entry.part
        self.whole += not entry.part

    def has_room(self, entry: LeaseEntry, offered: int, slots: int) -> bool:
        """Return whether the device takes `entry` too, where `offered` bytes of it are there for us."""
        if self.kept:
            return False
        if entry.part:
            return not self.whole and self.packed + entry.part <= (offered or entry.part)
        return not self.packed and self.whole < slots


def loads_of(held: Iterable[LeaseEntry]) -> dict[str, DeviceLoad]:
    """Return what is in use of each device; holders of one engine count once."""
    found: dict[str, DeviceLoad] = {}
    for entry, device in {(e.group, d): (e, d) for e in held for d in e.devices}.values():
        found.setdefault(device, DeviceLoad()).add(entry)
    return found


def choose(
    entry: LeaseEntry, loads: Mapping[str, DeviceLoad], slots: int, warm: Mapping[str, list[str]]
) -> list[str] | None:
    """Return the devices that `entry` gets now, in the order of its candidates, or None when there are too few.

    Preferred are, in this order: devices with the fewest engines that have them whole; those where the engine was
    before, as it may still be warm there; the tightest fit for a stated memory, so that room for large tasks stays;
    those where no other engine was, then where one was longest ago.

    Args:
        entry: Who asks.
        loads: What is in use.
        slots: Engines that may have one device whole.
        warm: Engines that were on each device, latest last.
    """
    nothing = DeviceLoad()
    free = [d for d, offered in entry.candidates.items() if loads.get(d, nothing).has_room(entry, offered, slots)]
    if len(free) < entry.count:
        return None

    def rank(device: str) -> tuple[int, bool, int, int]:
        load, engines = loads.get(device, nothing), warm.get(device, [])
        known = bool(entry.engine) and entry.engine in engines
        left = entry.candidates[device] - load.packed if entry.need else 0
        return load.whole, not known, left, len(engines)

    best = sorted(free, key=rank)[: entry.count]
    return [d for d in entry.candidates if d in best]


def kept_for(entry: LeaseEntry, loads: Mapping[str, DeviceLoad]) -> list[str]:
    """Return the devices that a waiter keeps when its patience has ended: those that are nearest to being free."""
    nothing = DeviceLoad()

    def use(device: str) -> tuple[int, int]:
        load = loads.get(device, nothing)
        return load.whole, load.packed - entry.candidates[device]

    return sorted((d for d in entry.candidates if not loads.get(d, nothing).kept), key=use)[: entry.count]


def joined(entry: LeaseEntry, held: Collection[LeaseEntry], before: Collection[LeaseEntry]) -> list[str]:
    """Return the devices of the engine that `entry` may join, [] when there is none.

    Entries that have waited longer come first: else a stream of tasks for one engine would block others indefinitely.
    """
    if not entry.shares:
        return []
    devices = next((e.devices for e in held if e.shares and e.engine == entry.engine and e.part == entry.part), [])
    waited_for = {c for e in before for c in e.candidates if e.group != entry.group}
    fits = len(devices) == entry.count and set(devices) <= set(entry.candidates)
    return list(devices) if fits and not waited_for & set(devices) else []


def candidates_of(request: ResourceRequest, inventory: Inventory) -> dict[str, int]:
    """Return the devices that would do for `request`, each with the bytes that are there for us (0 = not known)."""
    if not wanted_gpus(request):
        return {CPU: 0}
    found = {}
    for gpu in matching_gpus(request, inventory.gpus):
        offered, total = gpu.offered_bytes, gpu.memory_bytes
        if offered is None or total is None:
            found[gpu.device] = 0
        elif offered >= (request.gpu_memory_bytes or total * _LEAST_SHARE):
            found[gpu.device] = offered
    return found


def part_of(request: ResourceRequest, inventory: Inventory) -> int:
    """Return the bytes of each device that `request` takes; 0 = whole devices.

    A task that states a part of a card's memory (`gpu.memory`) shares the card with others that do, unless it says
    `gpu.exclusive`.
    """
    if request.gpu_exclusive or not wanted_gpus(request):
        return 0
    need = request.gpu_memory_bytes or 0
    return need if any(need < (g.memory_bytes or 0) for g in matching_gpus(request, inventory.gpus)) else 0


def share_of(entry: LeaseEntry, inventory: Inventory) -> float:
    """Return the share of its devices' memory that a holder may use, over 0 to 1; the smallest, if they differ.

    Shares that processes of others leave are rounded down to twentieths, so that small changes there do not make
    another engine of the same task.
    """
    shares = [1.0]
    totals = {g.device: g.memory_bytes for g in inventory.gpus}
    for device in entry.devices:
        total, offered = totals.get(device), entry.candidates.get(device, 0)
        if total and entry.part:
            shares.append(entry.part / total)
        elif total and 0 < offered < total:
            shares.append(int(20 * offered / total) / 20)
    return round(min(shares), 4)
