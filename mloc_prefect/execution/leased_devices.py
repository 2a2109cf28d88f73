"""Reads the device lease of this process from its environment, where its owner wrote it. Standard library only."""

from __future__ import annotations

import os

SHARE = "MLOC_GPU_SHARE"
"""Variable with the share of GPU memory that a host may use, e.g. `0.5`."""


def leased_gpus() -> list[str]:
    """Return the GPUs of this process by their CUDA names, e.g. `["0", "3"]`."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [name.strip() for name in names if name.strip()]


def leased_share() -> float:
    """Return the share of GPU memory that this process may use, above 0 and up to 1; 1 when the variable is not set."""
    try:
        share = float(os.environ.get(SHARE, "1"))
    except ValueError:
        return 1.0
    return share if 0.0 < share <= 1.0 else 1.0
