"""`WorkerCard`: what a worker tells the others about itself, small enough for a Prefect Variable."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from mloc_prefect.worker.identity import Process
from mloc_prefect.worker.inventory import Gpu, Inventory, matching_gpus, misfit, wanted_gpus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.plan.model import ResourceRequest

LIMIT = 4800
"""Characters of a card as JSON: a Variable holds 5000."""

Role = Literal["worker", "coordinator"]


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
        incarnation: Tells this process from others that had the same id.
        pool: Work pool that it serves.
        role: `coordinator` serves root runs only and has no hardware to offer.
        process: Its process.
        inventory: What it has.
        free: Indices of the devices on which nothing runs.
        cpu_free: Whether an engine may start on its CPU.
        slots: Further runs that it takes, or None for no limit.
        draining: It finishes what it has and takes nothing more.
        warm: Keys of the engines that are loaded.
        models: Models of those, for people.
        leases: What is held, and by whom.
        runs: Ids of the runs in it, at most the first few.
        beat: Grows with every heartbeat.
        heartbeat: Seconds between heartbeats.
    """

    id: str
    incarnation: str
    pool: str
    role: Role = "worker"
    process: Process
    inventory: Inventory = field(default_factory=lambda: Inventory(0))
    free: tuple[int, ...] = ()
    cpu_free: bool = True
    slots: int | None = None
    draining: bool = False
    warm: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    leases: tuple[Busy, ...] = ()
    runs: tuple[str, ...] = ()
    beat: int = 0
    heartbeat: float = 5.0

    def could_run(self, request: ResourceRequest, tags: tuple[str, ...] = ()) -> bool:
        """Return whether `request` fits this worker when nothing else runs there."""
        if self.role != "worker" or self.draining:
            return False
        return misfit(request, self.inventory) is None and set(tags) <= set(self.inventory.tags)

    def has_room(self, request: ResourceRequest, tags: tuple[str, ...] = ()) -> bool:
        """Return whether `request` would have found room at the last heartbeat."""
        if not self.could_run(request, tags) or self.slots == 0:
            return False
        count = wanted_gpus(request)
        idle = [gpu for gpu in self.inventory.gpus if gpu.index in self.free]
        return len(matching_gpus(request, idle)) >= count if count else self.cpu_free

    @property
    def idle_gpus(self) -> tuple[Gpu, ...]:
        """Devices on which nothing runs."""
        return tuple(gpu for gpu in self.inventory.gpus if gpu.index in self.free)

    def to_json(self) -> str:
        """Return the card as text of at most `LIMIT` characters; lists that are only shown are cut for it."""
        for kept in (100, 30, 10, 3, 0):
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
            tuples = {k: tuple(known[k]) for k in ("free", "warm", "models", "runs") if k in known}
            leases = tuple(Busy(holder=h, devices=tuple(d)) for h, d in known.get("leases", ()))
            shaped = {"process": Process(*known["process"]), "inventory": _inventory(known["inventory"])}
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
            "gpus": [[gpu.index, gpu.type, gpu.memory_bytes] for gpu in self.inventory.gpus],
        }
        return data


def _inventory(data: Mapping[str, Any]) -> Inventory:
    gpus = tuple(Gpu(index, kind, memory) for index, kind, memory in data["gpus"])
    return Inventory(data["cpus"], data["memory"], gpus, tuple(data["tags"]))
