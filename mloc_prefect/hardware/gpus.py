"""GPU devices, and which of them satisfy a request. [protocol 2.4]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mloc_prefect.plan.resources import memory_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mloc_prefect.plan.resources import ResourceRequest

_MIG = "MIG-"


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """One device.

    Attributes:
        index: Number by which `CUDA_VISIBLE_DEVICES` names it, in the order of the PCI bus.
        type: Lower-case name, e.g. `nvidia a100-sxm4-80gb`.
        memory_bytes: All memory on it, or None when unknown.
        uuid: UUID, or None for declared devices.
        taken_bytes: Memory that other processes hold at the moment.
    """

    index: int
    type: str
    memory_bytes: int | None = None
    uuid: str | None = None
    taken_bytes: int = 0

    @property
    def device(self) -> str:
        """Name in leases and in `HostSpec.devices`: `gpu:<index>`; a part of a partitioned card goes by its UUID."""
        part = self.uuid is not None and self.uuid.startswith(_MIG)
        return f"gpu:{self.uuid if part else self.index}"

    @property
    def offered_bytes(self) -> int | None:
        """Memory that we may use, or None when unknown."""
        return None if self.memory_bytes is None else max(0, self.memory_bytes - self.taken_bytes)

    def __str__(self) -> str:
        return f"{self.type} {memory_text(self.memory_bytes)}" if self.memory_bytes else self.type


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """What is in use of one device at a moment.

    Attributes:
        used: Bytes in use, whoever holds them.
        processes: Bytes by process id, as far as the driver lists processes.
    """

    used: int
    processes: Mapping[int, int]

    @property
    def unlisted(self) -> int:
        """Bytes in use that belong to no listed process: of the driver, or of processes that it cannot name."""
        return max(0, self.used - sum(self.processes.values()))


def wanted_gpus(request: ResourceRequest) -> int:
    """Return how many devices the request takes (none when it must stay on the CPU)."""
    return 0 if request.enforce_cpu else request.gpu_count


def matching_gpus(request: ResourceRequest, gpus: Sequence[GpuDevice]) -> tuple[GpuDevice, ...]:
    """Return the devices whose name and memory fit the request (protocol 2.4; unknown memory fits)."""
    need = request.gpu_memory_bytes or 0
    return tuple(
        g
        for g in gpus
        if (not request.gpu_type or request.gpu_type in g.type) and (g.memory_bytes is None or g.memory_bytes >= need)
    )


def gpus_text(gpus: Sequence[GpuDevice]) -> str:
    """Return devices as text: `2x a100 80 GiB`, or `no gpu`."""
    counts: dict[str, int] = {}
    for gpu in gpus:
        counts[str(gpu)] = counts.get(str(gpu), 0) + 1
    return ", ".join(f"{n}x {name}" for name, n in counts.items()) or "no gpu"


def wanted_text(request: ResourceRequest) -> str:
    """Return the devices that a request asks for as text: `2x a100 with 80 GiB`."""
    memory = f" with {memory_text(request.gpu_memory_bytes)}" if request.gpu_memory_bytes else ""
    return f"{wanted_gpus(request)}x {request.gpu_type or 'gpu'}{memory}"
