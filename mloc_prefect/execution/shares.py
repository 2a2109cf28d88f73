"""What was leased for this process, as its owner wrote it into the environment. Standard library only."""

from __future__ import annotations

import os

SHARE = "MLOC_GPU_SHARE"
"""Variable with the share of the memory of its GPUs that a host may use, e.g. `0.5`."""


def leased_gpus() -> list[str]:
    """Return the GPUs of this process by the names that CUDA gives them, e.g. `["0", "3"]`."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [name.strip() for name in names if name.strip()]


def leased_share() -> float:
    """Return the share of their memory that this process may use, over 0 to 1; 1 when nothing was said."""
    try:
        share = float(os.environ.get(SHARE, "1"))
    except ValueError:
        return 1.0
    return share if 0.0 < share <= 1.0 else 1.0
