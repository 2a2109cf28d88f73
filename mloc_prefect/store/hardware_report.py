"""Converts the hardware report of a registered worker into an inventory. [protocol 3.2, 2.4]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mloc_prefect.hardware.inventory import GpuDevice, Inventory
from mloc_prefect.plan.resources import parse_memory

if TYPE_CHECKING:
    from mloc_prefect.store.records import WorkerRecord

_UNKNOWN_CORES = 1 << 20
_GPU_BYTES = ("memory_total_bytes", "memory_bytes", "vram_bytes", "vram")
_GPU_MEMORY = ("total_bytes", "total", "bytes")


def inventory_of(hardware: Mapping[str, Any]) -> Inventory:
    """Return the inventory in a report; a missing value counts as enough.

    Args:
        hardware: `cpu`, `memory`, `gpu`, `network`, as workers of both generations send it.
    """
    cores = _mapping(hardware.get("cpu")).get("logical_cores")
    total = _size(_mapping(hardware.get("memory")).get("total_bytes"))
    gpus = _mapping(hardware.get("gpu")).get("gpus")
    return Inventory(
        cpus=cores if isinstance(cores, int) and cores > 0 else _UNKNOWN_CORES,
        memory_bytes=total,
        gpus=tuple(_gpu(index, entry) for index, entry in enumerate(gpus if isinstance(gpus, list) else ())),
    )


def worker_inventory(worker: WorkerRecord) -> Inventory:
    """Return the inventory of a registered worker: its report and its tags."""
    return replace(inventory_of(worker.hardware), tags=worker.tags)


def _gpu(index: int, entry: Any) -> GpuDevice:
    data = _mapping(entry)
    nested = _mapping(data.get("memory"))
    sizes = [_size(data.get(name)) for name in _GPU_BYTES] + [_size(nested.get(name)) for name in _GPU_MEMORY]
    uuid = data.get("uuid")
    return GpuDevice(
        index=index,
        type=str(data.get("name") or "unknown").lower(),
        memory_bytes=next((size for size in sizes if size), None),
        uuid=str(uuid) if uuid else None,
    )


def _size(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return parse_memory(value) or None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
