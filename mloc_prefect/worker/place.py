"""The machine of one worker: its inventory, its lease book and its executor hosts, and how full it is."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mloc_prefect.orchestrate.dispatch import InProcessDispatcher
from mloc_prefect.worker.card import Busy
from mloc_prefect.worker.inventory import Inventory, read_inventory
from mloc_prefect.worker.lease_rules import Load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mloc_prefect.execution.pool import HostPool
    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.worker.card import WorkerCard
    from mloc_prefect.worker.lease_book import Book


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
    leases: Book
    hosts: HostPool
    dispatcher: InProcessDispatcher
    settings: MlocSettings = field(repr=False)

    def fill_in(self, card: WorkerCard) -> WorkerCard:
        """Return `card` with what is free, leased and warm now."""
        held = self.leases.snapshot()
        used: dict[str, Load] = {}
        for entry in held:
            for device in entry.lease.devices:
                load = used.setdefault(device, Load())
                load.packed += entry.lease.memory_bytes
                load.whole += not entry.lease.memory_bytes
        hosts: list[dict[str, Any]] = self.hosts.snapshot()
        return replace(
            card,
            inventory=self.leases.inventory,
            used=tuple((name, load.whole, load.packed) for name, load in sorted(used.items())),
            engines=self.settings.engines_per_device,
            leases=tuple(Busy(holder=entry.lease.holder, devices=entry.lease.devices) for entry in held),
            warm=tuple(sorted({host["engine"] for host in hosts})),
            models=tuple(sorted({host["model"] for host in hosts if host["model"]})),
        )


@asynccontextmanager
async def local_place(settings: MlocSettings) -> AsyncIterator[Place]:
    """Yield this machine; its executor hosts end with the block."""
    from mloc_prefect.execution.dirs import run_dir
    from mloc_prefect.execution.hosts import HostPool
    from mloc_prefect.worker.leases import machine_book

    inventory = read_inventory(settings)
    book = machine_book(settings, inventory)
    async with HostPool(run_dir(settings.home), settings.host_idle_seconds, settings.host_start_seconds) as hosts:
        dispatcher = InProcessDispatcher(settings=settings, hosts=hosts, leases=book, inventory=inventory)
        yield Place(inventory, book, hosts, dispatcher, settings)
