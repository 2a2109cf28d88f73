"""Finds the result of an MLOC worker: in the shared results root, or posted to our endpoint.

In both cases the file is at the task's place below the results root, raw or in the envelope of protocol 1.4. An earlier
attempt may have left a file there, so only a file that changed after the task was sent counts.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts import atomic
from mloc_prefect.artifacts.layout import RESPONSES, task_dir
from mloc_prefect.errors import ArtifactError

if TYPE_CHECKING:
    from mloc_prefect.execution.protocol import ExecutionRequest

_STEP = 0.1
_ENVELOPE = {"task_id", "result", "received_at"}

Signature = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class ResultLocation:
    """The files in which the result of one attempt may appear.

    Attributes:
        request: The attempt.
        paths: Files to check; the first is the task's own.
        before: Their signatures before the attempt.
    """

    request: ExecutionRequest
    paths: tuple[Path, ...]
    before: Signature

    @classmethod
    def of(cls, request: ExecutionRequest, root: Path) -> ResultLocation:
        """Return the locations below results root `root`, as they are now."""
        paths = tuple(dict.fromkeys((Path(request.task_dir) / RESPONSES, task_dir(root, request.task_id) / RESPONSES)))
        return cls(request, paths, _signature(paths))

    async def wait(self, seconds: float) -> Any:
        """Return the result object as soon as it exists; None after `seconds` (file systems lag)."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            found = await asyncio.to_thread(self._read)
            if found is not None or loop.time() >= deadline:
                return found
            await asyncio.sleep(_STEP)

    def store_in_attempt(self, result: Any) -> Path:
        """Write the result object into the attempt's directory and return its path.

        Raises:
            ArtifactError: It cannot be written.
        """
        path = Path(self.request.attempt_dir) / "result.json"
        atomic.write_json(path, result)
        return path

    def write_to_task(self, result: Any) -> None:
        """Write `result` to the task's own file, which a worker without that directory could not."""
        atomic.write_json(self.paths[0], result)

    def is_delivered(self) -> bool:
        """Return whether the task's own file is from this attempt."""
        return _signature(self.paths[:1]) not in {(None,), self.before[:1]}

    def _read(self) -> Any:
        for path, before in zip(self.paths, self.before, strict=True):
            if _signature((path,))[0] in {None, before}:
                continue
            try:
                return unwrapped(atomic.read_json(path))
            except (FileNotFoundError, ArtifactError):  # it is being written
                continue
        return None


def unwrapped(content: Any) -> Any:
    """Return the result object of a result file, which may be an envelope."""
    return content["result"] if isinstance(content, dict) and set(content) >= _ENVELOPE else content


def failure_of(result: Any) -> str | None:
    """Return the error in the result of a failed task, or None when it did not fail. [protocol 5]."""
    if not isinstance(result, dict):
        return None
    if result.get("training_successful") is False:
        return str(result.get("error_message") or "training failed")
    if result.get("ok") is False:
        metadata = result.get("metadata")
        return str((metadata.get("error") if isinstance(metadata, dict) else None) or "the result says that it failed")
    return None


def _signature(paths: tuple[Path, ...]) -> Signature:
    return tuple(_of_file(path) for path in paths)


def _of_file(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
