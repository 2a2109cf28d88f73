"""Keep torch to the part of a card's memory that was leased."""

from __future__ import annotations

from mloc_prefect.execution.shares import leased_share


def bound_memory(*devices: int) -> None:
    """Let torch's allocator of this process use no more than the leased share of GPUs; more is out of memory.

    Args:
        devices: Those that this process uses, as torch counts; none = all. A bound alone costs a context on its GPU.
    """
    import torch

    share = leased_share()
    if share < 1.0:
        for index in devices or range(torch.cuda.device_count()):
            torch.cuda.set_per_process_memory_fraction(share, index)
