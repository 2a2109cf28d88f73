"""What a run learns about tasks from outside: results that somebody else stored, tasks of other submissions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal, Protocol

from mloc_prefect.artifacts.layout import task_dir
from mloc_prefect.artifacts.manifest import read_manifest
from mloc_prefect.errors import PlanError

if TYPE_CHECKING:
    from pathlib import Path

End = Literal["DONE", "FAILED", "CANCELLED"]


class TaskWatch(Protocol):
    """Waits for what happens to tasks; each call may be cancelled."""

    async def completed(self, task_id: str) -> None:
        """Return when the task was completed by a result from outside; wait for ever when that does not happen."""

    async def cancelled(self, task_id: str) -> None:
        """Return when the task was cancelled from outside; wait for ever when that does not happen."""

    async def ended(self, task_id: str) -> End:
        """Return how a task, most often of another submission, ended.

        Raises:
            PlanError: No such task is known.
        """
        ...


class ManifestWatch:
    """Knows tasks by the manifests below one results root; for runs without a store of task records.

    Args:
        root: Results root.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    async def completed(self, task_id: str) -> None:
        """See `TaskWatch`; nobody outside completes tasks here."""
        del task_id
        await asyncio.Event().wait()

    async def cancelled(self, task_id: str) -> None:
        """See `TaskWatch`; nobody outside cancels tasks here."""
        del task_id
        await asyncio.Event().wait()

    async def ended(self, task_id: str) -> End:
        """See `TaskWatch`. A task without a manifest cannot be told from one that never was: it is refused."""
        manifest = await asyncio.to_thread(read_manifest, task_dir(self._root, task_id))
        if manifest is None:
            raise PlanError(
                f"depends on task {task_id!r}, which is not done below {self._root}",
                hint="run it first, or name a stage of this spec in dependsOn",
            )
        return "DONE"
