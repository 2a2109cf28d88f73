"""The `prefect.collections` entry point, which every `prefect` command imports: the worker type and the blocks.

It must import quickly and never fail: only public parts of Prefect, no executors, no I/O.
"""

from __future__ import annotations

from mloc_prefect.blocks import MlocArtifactStore
from mloc_prefect.worker.worker import MlocGpuWorker

__all__ = ["MlocArtifactStore", "MlocGpuWorker"]
