"""`ExecutionContext`: what an executor sees of its surroundings in one attempt. Standard library only."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import Cancelled, ExecutionEvent
from mloc_prefect.execution.row_journal import RowJournal

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from mloc_prefect.execution.protocol import EventKind, ExecutionRequest

PROGRESS_PERIOD = 0.1
"""Seconds between two progress events of one attempt, so that neither displays nor logs are flooded."""

LOG_LIMIT = 16_000
"""Characters of one log message that are sent over the socket; the rest is cut off."""


class ExecutionContext:
    """Sends events, reports cancellation, and gives access to the files of one attempt.

    Args:
        request: The attempt.
        emit: Called with each event, from the executor's threads.
        cancelled: Set when the client has disconnected.
    """

    def __init__(
        self, request: ExecutionRequest, emit: Callable[[ExecutionEvent], None], cancelled: threading.Event
    ) -> None:
        self._request = request
        self._emit = emit
        self._cancelled = cancelled
        self._last_progress = 0.0
        self._held: dict[str, Any] | None = None
        self._rows: RowJournal | None = None

    @property
    def task_dir(self) -> Path:
        """Directory of the task's results."""
        return Path(self._request.task_dir)

    @property
    def attempt_dir(self) -> Path:
        """Directory of this attempt's files; it exists."""
        return Path(self._request.attempt_dir)

    @property
    def rows(self) -> RowJournal:
        """The journal of finished rows of this task; opened on first use, by the thread that runs the task."""
        if self._rows is None:
            self._rows = RowJournal(self.task_dir, self.attempt_dir)
        return self._rows

    @property
    def reused_rows(self) -> int:
        """Number of rows taken over from earlier attempts."""
        return self._rows.reused if self._rows is not None else 0

    @property
    def cancelled(self) -> bool:
        """Whether the client has disconnected."""
        return self._cancelled.is_set()

    def check(self) -> None:
        """Raise if the task has been cancelled, otherwise return.

        Raises:
            Cancelled: The task was cancelled; do not catch it.
        """
        if self._cancelled.is_set():
            raise Cancelled

    def sleep(self, seconds: float) -> None:
        """Wait for `seconds`, or until the task is cancelled.

        Raises:
            Cancelled: The task was cancelled meanwhile.
        """
        self._cancelled.wait(seconds)
        self.check()

    def progress(self, done: int, total: int | None, **extra: Any) -> None:
        """Report `done` of `total` rows or steps, with e.g. `tokens_out`.

        At most ten events a second are sent; the last one is always sent.
        """
        self._held = {"done": done, "total": total, **extra}
        finished = total is not None and done >= total
        if finished or time.monotonic() - self._last_progress >= PROGRESS_PERIOD:
            self.flush()

    def flush(self) -> None:
        """Send the progress event that was held back, if there is one."""
        if self._held is None:
            return
        held, self._held = self._held, None
        self._last_progress = time.monotonic()
        self._send("progress", held)

    def close(self) -> None:
        """Close the journal; the host calls this when the task has ended."""
        if self._rows is not None:
            self._rows.close()

    def log(self, message: str, level: str = "info") -> None:
        """Log one line for the user; very long lines are cut."""
        cut = message if len(message) <= LOG_LIMIT else f"{message[:LOG_LIMIT]} ... ({len(message)} characters)"
        self._send("log", {"message": cut, "level": level})

    def metric(self, **values: float) -> None:
        """Report named values, e.g. `loss=0.4`."""
        self._send("metric", values)

    def phase(self, text: str, fraction: float | None = None, *, patience: float | None = None) -> None:
        """Report the current step before rows can be counted, e.g. "loading weights".

        Args:
            text: The step.
            fraction: How much of it is done (0 to 1), if known.
            patience: Seconds to wait for this step after a cancellation before the process is ended, because its work
                would be lost otherwise, e.g. saving the last checkpoint.
        """
        data: dict[str, Any] = {"text": text}
        data |= {} if fraction is None else {"fraction": fraction}
        data |= {} if patience is None else {"patience": patience}
        self._send("phase", data)

    def relay(self, event: ExecutionEvent) -> None:
        """Forward an event of another process that works for this attempt."""
        self._emit(event)

    def _send(self, kind: EventKind, data: dict[str, Any]) -> None:
        self._emit(ExecutionEvent(kind=kind, data=data, ts=time.time()))
