"""Worker cards for unit tests."""

from __future__ import annotations

from typing import Any

from mloc_prefect.cluster.identity import WorkerProcess
from mloc_prefect.cluster.worker_card import WorkerCard
from mloc_prefect.hardware.inventory import GpuDevice, Inventory

GIB = 1 << 30


def card(name: str, *gpus: str, cpus: int = 8, tags: tuple[str, ...] = (), **fields: Any) -> WorkerCard:
    """Return the card of a worker on another machine; gpus as `a100:80`."""
    kinds = [gpu.split(":") for gpu in gpus]
    devices = tuple(GpuDevice(index, kind, int(size) * GIB) for index, (kind, size) in enumerate(kinds))
    inventory = Inventory(cpus, 64 * GIB, devices, tags)
    process = WorkerProcess(f"machine of {name}", 1, "mark")
    known = {"id": name, "incarnation": "i1", "pool": "gpu", "process": process, "inventory": inventory}
    return WorkerCard(**{**known, "heartbeat": 1.0, **fields})
