"""What an executor sees of the world while it runs one attempt. Standard library only."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import Cancelled, ExecutionEvent
from mloc_prefect.execution.rows import RowJournal

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from mloc_prefect.execution.protocol import EventKind, ExecutionRequest

PROGRESS_PERIOD = 0.1
"""Seconds between two progress events of one attempt: what a display can show and a log can bear."""

LOG_LIMIT = 16_000
"""Characters of one log message that cross the socket."""


class ExecutionContext:
    """Events out, cancellation in, and the files of one attempt.

    Args:
        request: The attempt.
        emit: Takes each event; called from the executor's threads.
        cancelled: Set when the client has gone.
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
        """The journal of finished rows of this task; made on first use, from the thread that runs the task."""
        if self._rows is None:
            self._rows = RowJournal(self.task_dir, self.attempt_dir)
        return self._rows

    @property
    def reused_rows(self) -> int:
        """Rows taken over from earlier attempts."""
        return self._rows.reused if self._rows is not None else 0

    @property
    def cancelled(self) -> bool:
        """Whether the client has gone."""
        return self._cancelled.is_set()

    def check(self) -> None:
        """Return if the task is still wanted.

        Raises:
            Cancelled: It is not; let it pass.
        """
        if self._cancelled.is_set():
            raise Cancelled

    def sleep(self, seconds: float) -> None:
        """Wait, but no longer than the task is wanted.

        Raises:
            Cancelled: The client went meanwhile.
        """
        self._cancelled.wait(seconds)
        self.check()

    def progress(self, done: int, total: int | None, **extra: Any) -> None:
        """Report `done` of `total` rows or steps, with e.g. `tokens_out`.

        At most ten a second are sent; the last one always is.
        """
        self._held = {"done": done, "total": total, **extra}
        finished = total is not None and done >= total
        if finished or time.monotonic() - self._last_progress >= PROGRESS_PERIOD:
            self.flush()

    def flush(self) -> None:
        """Send the progress that was held back, if any."""
        if self._held is None:
            return
        held, self._held = self._held, None
        self._last_progress = time.monotonic()
        self._send("progress", held)

    def close(self) -> None:
        """Close the journal; called by the host when the task has ended."""
        if self._rows is not None:
            self._rows.close()

    def log(self, message: str, level: str = "info") -> None:
        """Report one line for the reader of the run; very long ones are cut."""
        cut = message if len(message) <= LOG_LIMIT else f"{message[:LOG_LIMIT]} ... ({len(message)} characters)"
        self._send("log", {"message": cut, "level": level})

    def metric(self, **values: float) -> None:
        """Report named numbers, e.g. `loss=0.4`."""
        self._send("metric", values)

    def phase(self, text: str, fraction: float | None = None, *, patience: float | None = None) -> None:
        """Report what is being done before rows can be counted, e.g. "loading weights".

        Args:
            text: What is done.
            fraction: How much of it (0 to 1), where that is known.
            patience: Seconds that whoever cancels should wait for it before the process is ended: work that would be
                lost otherwise, such as the last checkpoint.
        """
        data: dict[str, Any] = {"text": text}
        data |= {} if fraction is None else {"fraction": fraction}
        data |= {} if patience is None else {"patience": patience}
        self._send("phase", data)

    def relay(self, event: ExecutionEvent) -> None:
        """Pass on an event of a process that works for this attempt."""
        self._emit(event)

    def _send(self, kind: EventKind, data: dict[str, Any]) -> None:
        self._emit(ExecutionEvent(kind=kind, data=data, ts=time.time()))
