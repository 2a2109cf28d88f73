"""Inventory of this machine: GPUs by NVML, cores, memory; or as the settings declare it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.errors import SettingsError
from mloc_prefect.hardware.gpus import GpuDevice, gpus_text, matching_gpus, wanted_gpus, wanted_text
from mloc_prefect.hardware.nvml import nvml_gpus
from mloc_prefect.plan.resources import memory_text, parse_memory, tags_of
from mloc_prefect.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mloc_prefect.plan.resources import ResourceRequest
    from mloc_prefect.settings import MlocSettings

__all__ = [
    "GpuDevice",
    "Inventory",
    "gpus_text",
    "matching_gpus",
    "misfit",
    "parse_inventory",
    "read_inventory",
    "wanted_gpus",
]

_FORM = '{"cpus": 8, "memory": "64GiB", "tags": ["lab"], "gpus": [{"type": "a100", "memory": "80GiB"}]}'


@dataclass(frozen=True, slots=True)
class Inventory:
    """The hardware that may be used.

    Attributes:
        cpus: Logical cores.
        memory_bytes: RAM in bytes, or None when unknown.
        gpus: Devices by index.
        tags: Free words about the machine.
    """

    cpus: int
    memory_bytes: int | None = None
    gpus: tuple[GpuDevice, ...] = ()
    tags: tuple[str, ...] = ()

    def __str__(self) -> str:
        memory = f", {memory_text(_rounded(self.memory_bytes))}" if self.memory_bytes else ""
        return f"{self.cpus} cpu{memory}, {gpus_text(self.gpus)}"


def read_inventory(settings: MlocSettings) -> Inventory:
    """Return the declared inventory (`MLOC_INVENTORY`), or that of the machine, with the tags of `MLOC_WORKER_TAGS`.

    Of the machine's GPUs, those that `CUDA_VISIBLE_DEVICES` leaves to this process are there (`nvml_gpus`).

    Raises:
        SettingsError: The declaration cannot be read; the message says what is wrong and shows the form.
    """
    if settings.inventory and settings.inventory.strip():
        found = parse_inventory(_declaration(settings.inventory.strip()))
    else:
        found = Inventory(len(os.sched_getaffinity(0)), _memory(), nvml_gpus(settings.home))
    more = [tag for tag in tags_of(settings.worker_tags) if tag not in tags_of(found.tags)]
    return replace(found, tags=(*found.tags, *more))


def parse_inventory(text: str) -> Inventory:
    """Return the inventory declared in JSON; what is left out is taken from the machine, except GPUs (none).

    Raises:
        SettingsError: Not JSON, or a field of the wrong kind.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise _bad(f"not JSON: {error}") from None
    if not isinstance(data, dict):
        raise _bad(f"must be an object, found {type(data).__name__}")
    unknown = sorted(set(data) - {"cpus", "memory", "tags", "gpus"})
    if unknown:
        raise _bad(f"unknown field {unknown[0]!r}")
    cpus = data.get("cpus", len(os.sched_getaffinity(0)))
    if not isinstance(cpus, int) or isinstance(cpus, bool) or cpus < 1:
        raise _bad(f"cpus must be a whole number from 1, found {cpus!r}")
    memory = _bytes(data["memory"], "memory") if "memory" in data else _memory()
    gpus = tuple(_declared_gpu(i, g) for i, g in enumerate(_list(data, "gpus")))
    return Inventory(cpus, memory, gpus, tuple(str(t) for t in _list(data, "tags")))


def misfit(request: ResourceRequest, inventory: Inventory) -> str | None:
    """Return why `request` can never run here, as one clause of a sentence, or None when it can."""
    wants: list[str] = []
    has: list[str] = []
    if request.cpus is not None and request.cpus > inventory.cpus:
        wants.append(f"{request.cpus} cpu")
        has.append(f"{inventory.cpus} cpu")
    if request.memory_bytes and inventory.memory_bytes and request.memory_bytes > inventory.memory_bytes:
        wants.append(f"{memory_text(request.memory_bytes)} of memory")
        has.append(f"{memory_text(_rounded(inventory.memory_bytes))} of memory")
    if wanted_gpus(request) > len(matching_gpus(request, inventory.gpus)):
        wants.append(wanted_text(request))
        has.append(gpus_text(inventory.gpus))
    if missing := [tag for tag in request.tags if tag not in tags_of(inventory.tags)]:
        wants.append(_tags_text(missing))
        has.append(_tags_text(inventory.tags))
    return f"needs {' and '.join(wants)}, this machine has {' and '.join(has)}" if wants else None


def _tags_text(tags: Sequence[str]) -> str:
    return f"the tag{'s' if len(tags) > 1 else ''} {', '.join(tags)}" if tags else "no tags"


def _declaration(value: str) -> str:
    if value.startswith("{"):
        return value
    local = local_path(value)
    if local is None:
        raise _bad(f"must be JSON or a file of this machine, not a URL: {value!r}")
    path = Path(local).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(f"neither JSON nor a readable file: {value!r} ({error})") from None


def _declared_gpu(index: int, data: Any) -> GpuDevice:
    if not isinstance(data, dict) or not str(data.get("type") or "").strip():
        raise _bad(f"gpus[{index}] must be an object with a type, found {data!r}")
    memory = _bytes(data["memory"], f"gpus[{index}].memory") if data.get("memory") is not None else None
    return GpuDevice(index, str(data["type"]).strip().lower(), memory)


def _bytes(value: Any, name: str) -> int:
    size = parse_memory(value)
    if not size:
        raise _bad(f"{name} must be a size like 64GiB, found {value!r}")
    return size


def _list(data: Mapping[str, Any], name: str) -> list[Any]:
    value = data.get(name) or []
    if not isinstance(value, list):
        raise _bad(f"{name} must be a list, found {value!r}")
    return value


def _bad(what: str) -> SettingsError:
    from mloc_prefect.settings import where_set

    return SettingsError(f"setting {where_set('inventory')}: {what}", hint=f"the form is {_FORM}")


def _memory() -> int | None:
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")  # of the container, when it is smaller than the machine
    try:
        text = limit.read_text().strip()
    except OSError:
        return physical
    return min(physical, int(text)) if text.isdigit() else physical


def _rounded(size: int | None) -> int:
    """Return bytes rounded down to whole GiB, or MiB below one."""
    unit = 1 << (30 if (size or 0) >= 1 << 30 else 20)
    return (size or 0) // unit * unit
