"""`WorkerCard`: what a worker publishes about itself, small enough for a Prefect Variable."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from mloc_prefect.cluster.identity import WorkerProcess
from mloc_prefect.hardware.inventory import GpuDevice, Inventory, misfit, wanted_gpus
from mloc_prefect.leases.rules import DeviceLoad, LeaseEntry, candidates_of, choose, part_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.plan.resources import ResourceRequest

LIMIT = 4800
"""Characters of a card as JSON: a Variable holds 5000."""

SHOWN = 100
"""Most rows of each list that is only shown."""

Role = Literal["worker", "coordinator"]

_BEATS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """A lease as others see it.

    Attributes:
        holder: Who has it, for people.
        devices: `gpu:<index>` each, or `cpu`.
    """

    holder: str
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCard:
    """One worker as the others see it.

    Attributes:
        id: MLOC's id of the worker, also its name in Prefect.
        incarnation: Distinguishes this process from others that had the same id.
        pool: Work pool that it serves.
        role: `coordinator` serves workflow runs only and offers no hardware.
        process: Its process.
        inventory: What it has.
        used: Devices in use: name, engines that have it whole, bytes of those that have a part.
        engines: Engines that may have one device whole.
        slots: Further runs that it takes, or None for no limit.
        draining: It finishes its runs and takes no more.
        warm: Keys of the engines that are loaded.
        models: Models that are loaded, by their whole identifiers, for people.
        leases: What is held, and by whom.
        runs: Ids of the runs in it, at most the first few.
        beat: Number of the heartbeat.
        heartbeat: Seconds between heartbeats.
        problem: Why it takes no work although it runs; empty when it does.
    """

    id: str
    incarnation: str
    pool: str
    role: Role = "worker"
    process: WorkerProcess
    inventory: Inventory = field(default_factory=lambda: Inventory(0))
    used: tuple[tuple[str, int, int], ...] = ()
    engines: int = 1
    slots: int | None = None
    draining: bool = False
    warm: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    leases: tuple[Busy, ...] = ()
    runs: tuple[str, ...] = ()
    beat: int = 0
    heartbeat: float = 5.0
    problem: str = ""

    def patience(self, ttl: float) -> float:
        """Return the seconds without a heartbeat after which it counts as lost: `ttl`, at least three heartbeats."""
        return max(ttl, _BEATS * self.heartbeat)

    def could_run(self, request: ResourceRequest) -> bool:
        """Return whether `request` fits this worker when nothing else runs there."""
        return self.role == "worker" and not (self.draining or self.problem) and misfit(request, self.inventory) is None

    def has_room(self, request: ResourceRequest, *, lease: bool = True) -> bool:
        """Return whether `request` would have found room at the last heartbeat.

        Args:
            request: What is wanted.
            lease: Whether it needs a device; light work only needs a slot.
        """
        return self.room(request, lease=lease, most=1) == 1

    def room(self, request: ResourceRequest, *, lease: bool = True, most: int = 64) -> int:
        """Return how often `request` would have found room at the last heartbeat, at most `most`.

        Args:
            request: What is wanted.
            lease: Whether it needs a device; light work only needs a slot, and counts once for each core.
            most: Where counting ends.
        """
        if not self.could_run(request):
            return 0
        most = most if self.slots is None else min(most, self.slots)
        if not lease:
            return min(most, self.inventory.cpus)
        candidates = candidates_of(request, self.inventory)
        part, count = part_of(request, self.inventory), wanted_gpus(request) or 1
        wish = LeaseEntry(id="", holder="", pid=0, start="", candidates=candidates, count=count, part=part)
        loads = {name: DeviceLoad(whole, packed) for name, whole, packed in self.used}
        found = 0
        while found < most and (devices := choose(wish, loads, self.engines, {})):
            found += 1
            for device in devices:
                loads.setdefault(device, DeviceLoad()).add(wish)
        return found

    @property
    def idle_gpus(self) -> tuple[GpuDevice, ...]:
        """Devices on which no engine of ours runs."""
        used = {name for name, _, _ in self.used}
        return tuple(gpu for gpu in self.inventory.gpus if gpu.device not in used)

    @property
    def at_work(self) -> dict[str, Any]:
        """What it holds and runs now, for people and dashboards.

        `leases` [{holder, devices}], `models` (names of those that are loaded), `runs` (ids of flow runs).
        """
        leases = [{"holder": busy.holder, "devices": list(busy.devices)} for busy in self.leases]
        found = {"leases": leases, "models": list(self.models), "runs": list(self.runs)}
        return found | ({"problem": self.problem} if self.problem else {})

    def to_json(self) -> str:
        """Return the card as text of at most `LIMIT` characters; lists that are only shown are cut for it."""
        for kept in (SHOWN, 30, 10, 3, 0):
            shown = replace(
                self, models=self.models[:kept], leases=self.leases[:kept], runs=self.runs[:kept], warm=self.warm[:64]
            )
            text = json.dumps(shown._wire(), separators=(",", ":"))
            if len(text) <= LIMIT:
                return text
        return json.dumps(replace(shown, warm=())._wire(), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> WorkerCard:
        """Return the card in `text`; keys of a newer worker are ignored.

        Raises:
            ValueError: It is no card.
        """
        data = json.loads(text)
        try:
            known = {k: v for k, v in data.items() if k in cls.__dataclass_fields__}
            tuples = {k: tuple(known[k]) for k in ("warm", "models", "runs") if k in known}
            tuples["used"] = tuple((str(n), int(w), int(b)) for n, w, b in known.get("used", ()))
            leases = tuple(Busy(holder=h, devices=tuple(d)) for h, d in known.get("leases", ()))
            shaped = {"process": WorkerProcess(*known["process"]), "inventory": _inventory(known["inventory"])}
            return cls(**{**known, **tuples, **shaped, "leases": leases})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the card of a worker: {error!r}") from None

    def _wire(self) -> dict[str, Any]:
        data = asdict(self)
        data["process"] = [self.process.where, self.process.pid, self.process.mark]
        data["leases"] = [[busy.holder, list(busy.devices)] for busy in self.leases]
        data["inventory"] = {
            "cpus": self.inventory.cpus,
            "memory": self.inventory.memory_bytes,
            "tags": list(self.inventory.tags),
            "gpus": [[g.index, g.type, g.memory_bytes, g.uuid, g.taken_bytes] for g in self.inventory.gpus],
        }
        return data


def _inventory(data: Mapping[str, Any]) -> Inventory:
    gpus = tuple(GpuDevice(*gpu) for gpu in data["gpus"])
    return Inventory(data["cpus"], data["memory"], gpus, tuple(data["tags"]))
