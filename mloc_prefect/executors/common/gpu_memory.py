"""Limits torch to the leased share of GPU memory, and frees memory."""

from __future__ import annotations

import gc
import sys

from mloc_prefect.execution.leased_devices import leased_share


def limit_memory(*devices: int) -> None:
    """Limit torch's allocator in this process to the leased share of GPU memory.

    Args:
        devices: GPUs that this process uses, by torch's numbers; none = all. A limit costs a context on its GPU.
    """
    import torch

    share = leased_share()
    if share < 1.0:
        for index in devices or range(torch.cuda.device_count()):
            torch.cuda.set_per_process_memory_fraction(share, index)


def free_memory() -> None:
    """Return the memory of dropped models to the device."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
