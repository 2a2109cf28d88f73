"""Writes `logs/stage.log` of a task: what happened and when, as it happens."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

from mloc_prefect.errors import ArtifactError
from mloc_prefect.execution.host.progress_meter import ProgressMeter, phase_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from mloc_prefect.execution.protocol import ExecutionEvent

_PROGRESS_SECONDS = 1.0  # progress lines are no closer than this


class StageLog:
    """An open log file.

    Args:
        directory: Task directory.
        mask: Takes the secrets of the spec out of a text.

    Raises:
        ArtifactError: The file cannot be opened.
    """

    def __init__(self, directory: Path, mask: Callable[[str], str] = str) -> None:
        self._mask = mask
        path = directory / "logs" / "stage.log"
        self._progress = 0.0
        self._meter = ProgressMeter()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise ArtifactError(f"cannot write {path}: {error.strerror or error}") from error

    def __enter__(self) -> StageLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def line(self, text: str, ts: float | None = None) -> None:
        """Write one entry; further lines of `text` are indented."""
        stamp = datetime.fromtimestamp(ts or time.time(), UTC).isoformat(timespec="milliseconds")
        self._file.write(f"{stamp} " + self._mask(text).rstrip().replace("\n", "\n    ") + "\n")

    def event(self, event: ExecutionEvent) -> None:
        """Write an event of the executor; progress at most once a second, and always the last row."""
        data = event.data
        if event.kind == "log":
            self.line(f"{data.get('level', 'info')}: {data.get('message', '')}", event.ts)
        elif event.kind == "progress":
            self._meter.take(data, event.ts)
            last = data.get("done") == data.get("total")
            if last or event.ts - self._progress >= _PROGRESS_SECONDS:
                self._progress = event.ts
                self.line(f"progress: {self._meter.text(event.ts)}", event.ts)
        elif event.kind == "phase":
            self.line(f"phase: {phase_text(data)}", event.ts)
        else:
            self.line(f"{event.kind}: {json.dumps(data, ensure_ascii=False, default=str)}", event.ts)
