"""The journal of an agent's steps: after a restart, finished steps are read from it instead of being done again.

`<task dir>/attempts/<run_count>-<attempt>/steps.jsonl`, one object per line: `{"item", "step", "value"}`. `item` is the
row key of the item, `step` a digest of everything that the step depends on, so that a step of another configuration, or
after another history, is never taken for this one. Attempts never share a file. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import threading
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.line_file import LineFile, files_of_attempts, objects_of
from mloc_prefect.execution.wire import dumps, to_bytes

if TYPE_CHECKING:
    from pathlib import Path

STEPS = "steps.jsonl"


def step_digest(*parts: Any) -> str:
    """Return the identity of a step: SHA-256 (hex) of what it depends on."""
    return hashlib.sha256(to_bytes(dumps(list(parts)))).hexdigest()


class StepJournal:
    """Steps of one task: reads those of all attempts, writes those of this one. Thread-safe.

    Args:
        task_dir: Directory of the task.
        attempt_dir: Directory of this attempt.
    """

    def __init__(self, task_dir: Path, attempt_dir: Path) -> None:
        self._lock = threading.Lock()
        self._lines = LineFile(attempt_dir / STEPS, 0o640)
        self._found: dict[tuple[str, str], tuple[Path, int]] = {}
        for path in files_of_attempts(task_dir, STEPS):
            for offset, row in objects_of(path):
                if "value" in row:
                    self._found[str(row.get("item")), str(row.get("step"))] = (path, offset)

    def recorded(self, item: str, step: str) -> Any:
        """Return the value of a finished step, None if it was never finished."""
        with self._lock:
            at = self._found.get((item, step))
        if at is None:
            return None
        with at[0].open("rb") as file:
            file.seek(at[1])
            return json.loads(file.readline())["value"]

    def append(self, item: str, step: str, value: Any) -> None:
        """Write a finished step at once, so that it survives a crash.

        Raises:
            OSError: It could not be written completely (disk full).
        """
        line = to_bytes(dumps({"item": item, "step": step, "value": value})) + b"\n"
        with self._lock:
            offset = self._lines.append(line)
            self._found[item, step] = (self._lines.path, offset)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._lines.close()
