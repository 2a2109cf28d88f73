"""The machine of one worker: its inventory, its lease book and its executor hosts, and how full it is."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mloc_prefect.orchestrate.dispatch import InProcessDispatcher
from mloc_prefect.worker.card import Busy
from mloc_prefect.worker.inventory import Inventory, read_inventory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mloc_prefect.execution.pool import HostPool
    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.worker.card import WorkerCard
    from mloc_prefect.worker.leases import LeaseBook


@dataclass(frozen=True, slots=True)
class Place:
    """What a worker runs stages with.

    Attributes:
        inventory: What may be used.
        leases: Who has which device.
        hosts: Executor processes.
        dispatcher: Runs attempts on them.
    """

    inventory: Inventory
    leases: LeaseBook
    hosts: HostPool
    dispatcher: InProcessDispatcher
    settings: MlocSettings = field(repr=False)

    def fill_in(self, card: WorkerCard) -> WorkerCard:
        """Return `card` with what is free, leased and warm now."""
        held = self.leases.snapshot()
        taken: dict[str, int] = {}
        for entry in held:
            for device in entry.lease.devices:
                taken[device] = taken.get(device, 0) + 1
        slots = self.settings.engines_per_device
        hosts: list[dict[str, Any]] = self.hosts.snapshot()
        return replace(
            card,
            free=tuple(g.index for g in self.inventory.gpus if taken.get(f"gpu:{g.index}", 0) < slots),
            cpu_free=taken.get("cpu", 0) < slots,
            leases=tuple(Busy(holder=entry.lease.holder, devices=entry.lease.devices) for entry in held),
            warm=tuple(sorted({host["engine"] for host in hosts if host.get("engine")})),
            models=tuple(sorted({host["model"] for host in hosts if host.get("model")})),
        )


@asynccontextmanager
async def local_place(settings: MlocSettings) -> AsyncIterator[Place]:
    """Yield this machine; its executor hosts end with the block."""
    from mloc_prefect.execution.dirs import run_dir
    from mloc_prefect.execution.hosts import HostPool
    from mloc_prefect.worker.leases import FileLeaseBook

    inventory = read_inventory(settings)
    book = FileLeaseBook(settings.home, inventory, settings.engines_per_device)
    async with HostPool(run_dir(settings.home), settings.host_idle_seconds, settings.host_start_seconds) as hosts:
        dispatcher = InProcessDispatcher(settings=settings, hosts=hosts, leases=book, inventory=inventory)
        yield Place(inventory, book, hosts, dispatcher, settings)
