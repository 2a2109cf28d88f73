"""GPU memory of executor hosts, for displays: NVML knows processes, the host pool knows hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.hardware.nvml import process_memory
from mloc_prefect.process.process_memory import family

if TYPE_CHECKING:
    from collections.abc import Sequence


def with_card_memory(hosts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return hosts as `HostPool.snapshot` has them, each with `gpu_memory_bytes`: None off GPUs and where unknown.

    Asks the driver, which may take a moment, when there is a host on a GPU.
    """
    on_cards = [any(device.startswith("gpu:") for device in host["devices"]) for host in hosts]
    used = process_memory() if any(on_cards) else {}
    return [
        {**host, "gpu_memory_bytes": sum(used.get(pid, 0) for pid in family(host["pid"])) or None if on_card else None}
        for host, on_card in zip(hosts, on_cards, strict=True)
    ]
