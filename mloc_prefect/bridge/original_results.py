"""Where a worker of the original protocol has left its result: in the shared results root, or posted to our endpoint.

Either way it lies at the task's place below the results root, raw or in the envelope of protocol 1.4. An older attempt
may have left a file there, so what counts is a file that changed since the task was given out.
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
class ResultPlace:
    """The places where the result of one attempt may turn up.

    Attributes:
        request: The attempt.
        paths: Files to look at; the first is the one that is kept.
        before: What was there before the attempt.
    """

    request: ExecutionRequest
    paths: tuple[Path, ...]
    before: Signature

    @classmethod
    def of(cls, request: ExecutionRequest, root: Path) -> ResultPlace:
        """Return the places below results root `root`, as they are now."""
        paths = tuple(dict.fromkeys((Path(request.task_dir) / RESPONSES, task_dir(root, request.task_id) / RESPONSES)))
        return cls(request, paths, _signature(paths))

    async def wait(self, seconds: float) -> Any:
        """Return the result object once it is there; None when none came within `seconds` (file systems lag)."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            found = await asyncio.to_thread(self._read)
            if found is not None or loop.time() >= deadline:
                return found
            await asyncio.sleep(_STEP)

    def keep(self, result: Any) -> Path:
        """Put the result object into the attempt's directory and return its path.

        Raises:
            ArtifactError: It cannot be written.
        """
        path = Path(self.request.attempt_dir) / "result.json"
        atomic.write_json(path, result)
        return path

    def put(self, result: Any) -> None:
        """Write `result` to the place of the task, where a worker without that directory could not."""
        atomic.write_json(self.paths[0], result)

    def in_place(self) -> bool:
        """Return whether the file at the task's place is of this attempt."""
        return _signature(self.paths[:1]) not in {(None,), self.before[:1]}

    def _read(self) -> Any:
        for path, before in zip(self.paths, self.before, strict=True):
            if _signature((path,))[0] in {None, before}:
                continue
            try:
                return unwrapped(atomic.read_json(path))
            except (FileNotFoundError, ArtifactError):  # being written
                continue
        return None


def unwrapped(content: Any) -> Any:
    """Return the result object of a result file, which may be an envelope."""
    return content["result"] if isinstance(content, dict) and set(content) >= _ENVELOPE else content


def says_failed(result: Any) -> str | None:
    """Return why the result file of a failed task says that it failed, or None when it does not. [protocol 5]."""
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
