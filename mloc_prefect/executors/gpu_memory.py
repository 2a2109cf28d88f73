"""Keep torch to the part of a card's memory that was leased."""

from __future__ import annotations

from mloc_prefect.execution.shares import leased_share


def bound_memory() -> None:
    """Let torch's allocator of this process use no more than the leased share of each GPU; more is out of memory."""
    import torch

    share = leased_share()
    if share < 1.0:
        for index in range(torch.cuda.device_count()):
            torch.cuda.set_per_process_memory_fraction(share, index)
