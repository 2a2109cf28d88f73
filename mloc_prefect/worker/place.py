"""What a worker gives the runs in its loop: its hosts and its leases, through a dispatcher of its own."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from mloc_prefect.execution.dirs import run_dir
from mloc_prefect.execution.hosts import HostPool
from mloc_prefect.settings import get_settings
from mloc_prefect.worker.inventory import read_inventory
from mloc_prefect.worker.leases import FileLeaseBook

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def worker_place() -> AsyncIterator[None]:
    """Own warm hosts, and let every run of this process dispatch its stages to them."""
    from mloc_prefect.orchestrate.dispatch import InProcessDispatcher, use_dispatcher

    settings = get_settings()
    inventory = read_inventory(settings)
    leases = FileLeaseBook(settings.home, inventory, settings.engines_per_device)
    async with HostPool(run_dir(settings.home), settings.host_idle_seconds, settings.host_start_seconds) as hosts:
        with use_dispatcher(InProcessDispatcher(hosts=hosts, leases=leases, settings=settings)):
            yield
