"""What every `prefect` command imports of us (`prefect.collections` entry point): the worker type and the blocks.

It must stay light and must never fail to import: only public parts of Prefect, nothing of executors, no I/O.
"""

from __future__ import annotations

from mloc_prefect.blocks import MlocArtifactStore
from mloc_prefect.worker.worker import MlocGpuWorker

__all__ = ["MlocArtifactStore", "MlocGpuWorker"]
