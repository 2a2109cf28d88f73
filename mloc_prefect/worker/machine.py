"""The machine of a worker: its inventory, its lease book, its executor hosts, and their load."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mloc_prefect.cluster.worker_card import Busy
from mloc_prefect.flow.dispatcher import InProcessDispatcher
from mloc_prefect.hardware.inventory import Inventory, read_inventory
from mloc_prefect.leases.rules import DeviceLoad

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mloc_prefect.cluster.worker_card import WorkerCard
    from mloc_prefect.execution.hosts.host_pool import HostPool
    from mloc_prefect.leases.book import Book
    from mloc_prefect.settings import MlocSettings


@dataclass(frozen=True, slots=True)
class Machine:
    """The resources with which a worker runs stages.

    Attributes:
        inventory: Hardware that may be used.
        leases: The lease book.
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
        used: dict[str, DeviceLoad] = {}
        for entry in held:
            for device in entry.lease.devices:
                load = used.setdefault(device, DeviceLoad())
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
async def this_machine(settings: MlocSettings) -> AsyncIterator[Machine]:
    """Yield this machine; its executor hosts end with the block."""
    from mloc_prefect.execution.hosts import HostPool
    from mloc_prefect.leases import device_return, machine_book
    from mloc_prefect.process.run_dir import run_dir

    inventory = read_inventory(settings)
    book = machine_book(settings, inventory)
    async with HostPool(run_dir(settings.home), settings.host_idle_seconds, settings.host_start_seconds) as hosts:
        dispatcher = InProcessDispatcher(
            settings=settings, hosts=hosts, leases=book, inventory=inventory, returns=device_return(settings)
        )
        yield Machine(inventory, book, hosts, dispatcher, settings)
