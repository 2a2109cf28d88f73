"""Tasks inside a host: their connections, their queue and the threads that run them. Standard library only."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.errors import ExecutionFailure
from mloc_prefect.execution.context import ExecutionContext
from mloc_prefect.execution.failures import breaks_host, failure_of
from mloc_prefect.execution.host.loading import load_class
from mloc_prefect.execution.protocol import Cancelled, ExecutionEvent
from mloc_prefect.execution.result_file import summary_of, write_result
from mloc_prefect.execution.wire import EVENT_LIMIT, encode

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from mloc_prefect.execution.executor import Executor
    from mloc_prefect.execution.protocol import ExecutionRequest

THREAD_PREFIX = "mloc-host-"
"""Names of the threads that a host cannot do without."""


class HostTask:
    """One task and the connection it came by.

    Attributes:
        request: The attempt.
        cancelled: Set when the client has disconnected, or asks to drop the task.
        cancelled_at: When that was (monotonic seconds), or None.
        patient_until: Until when (monotonic seconds) a cancelled task may finish what would be lost otherwise.
        ended: Whether the executor is done with it. Set before the client is answered: its next question finds us idle.
    """

    def __init__(self, request: ExecutionRequest, conn: socket.socket) -> None:
        self.request = request
        self.cancelled = threading.Event()
        self.cancelled_at: float | None = None
        self.patient_until = 0.0
        self.ended = False
        self._conn = conn
        self._lock = threading.Lock()
        self._claimed = False

    def claim(self) -> bool:
        """Return True for the first caller only: the worker that runs the task, or the one that drops it before."""
        with self._lock:
            first, self._claimed = not self._claimed, True
            return first

    def cancel(self) -> None:
        """Ask the executor to stop at its next check."""
        self.cancelled_at = self.cancelled_at or time.monotonic()
        self.cancelled.set()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one line; a client that has disconnected, or does not read, cancels the task."""
        line = encode(message)
        with self._lock:
            try:
                self._conn.sendall(line)
            except OSError:
                self.cancel()

    def emit(self, event: ExecutionEvent) -> None:
        """Send an event; one that is too large to be meant for a display is replaced by a note."""
        if event.kind == "phase" and (patience := event.data.get("patience")):
            self.patient_until = time.monotonic() + float(patience)
        message = {"t": "event", "kind": event.kind, "data": event.data, "ts": event.ts}
        size = len(encode(message))
        if size > EVENT_LIMIT:
            note = f"a {event.kind} event of {size} bytes was left out"
            message |= {"kind": "log", "data": {"message": note, "level": "warning"}}
        self.send(message)


class TaskRunner:
    """Runs the tasks of one host, at most `concurrency` of the executor at once, the first on the thread of `work`.

    Args:
        executor: `package.module:Class`; loaded when the first task comes.
        options: Engine options, given to the class.
        on_finished: Called by a worker after the last line of a task was sent.
        on_loaded: Called with whether the executor holds a model, at every event and end of a task.
    """

    def __init__(
        self,
        executor: str,
        options: Mapping[str, Any],
        on_finished: Callable[[HostTask], None],
        on_loaded: Callable[[bool], None],
    ) -> None:
        self._path = executor
        self._options = options
        self._on_finished = on_finished
        self._on_loaded = on_loaded
        self._queue: queue.SimpleQueue[HostTask | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._executor: Executor | None = None
        self._limit = 1  # until the class is loaded and states its own
        self._workers = 1
        self._idle = 0

    def submit(self, task: HostTask) -> None:
        """Queue `task`."""
        self._queue.put(task)
        self._grow()

    def work(self) -> None:
        """Run tasks on this thread until `stop`; the executor is closed at the end."""
        self._work()
        if self._executor is not None:
            self._executor.close()

    def sleep(self, on_done: Callable[[bool], None]) -> None:
        """Let an executor that can do so give back the memory of its device; `on_done` gets whether it has."""

        def action() -> None:
            sleep = getattr(self._executor, "sleep", None)
            ok = False
            try:
                ok = bool(sleep()) if sleep is not None else False
            except Exception as error:  # boundary: the owner ends a host that cannot sleep
                traceback.print_exception(error, file=sys.stderr)
            on_done(ok)

        threading.Thread(target=action, name="mloc-sleep", daemon=True).start()

    def stop(self) -> None:
        """Let every worker end when the tasks queued before are done."""
        with self._lock:
            self._limit = 0
            for _ in range(self._workers):
                self._queue.put(None)

    def _work(self) -> None:
        while True:
            self._count_idle(1)
            task = self._queue.get()
            self._count_idle(-1)
            if task is None:
                return
            if task.claim():
                self._run_task(task)

    def _count_idle(self, change: int) -> None:
        with self._lock:
            self._idle += change

    def _grow(self) -> None:
        """Start the workers that are wanted and allowed."""
        with self._lock:
            wanted = min(self._queue.qsize() - self._idle, self._limit - self._workers)
            for _ in range(wanted):
                self._workers += 1
                threading.Thread(target=self._work, name=f"{THREAD_PREFIX}{self._workers}", daemon=True).start()

    def _run_task(self, task: HostTask) -> None:
        task.send({"t": "started", "pid": os.getpid()})
        try:
            last = self._attempt(task)
        except BaseException as error:  # boundary: any error of an executor becomes a failure
            last = _error(error)
        task.ended = True
        self._report_loaded()
        task.send(last)
        self._on_finished(task)

    def _attempt(self, task: HostTask) -> dict[str, Any]:
        attempt_dir = Path(task.request.attempt_dir)
        attempt_dir.mkdir(parents=True, exist_ok=True)

        def emit(event: ExecutionEvent) -> None:
            self._report_loaded()
            task.emit(event)

        context = ExecutionContext(task.request, emit, task.cancelled)
        try:
            context.check()
            result = self._load().run(task.request, context)
            path = write_result(attempt_dir, result)
            summary = summary_of(result)
            context.flush()
            reused = context.reused_rows
        finally:
            context.close()
        return {"t": "result", "path": str(path), "summary": summary, "reused_rows": reused, "pid": os.getpid()}

    def _report_loaded(self) -> None:
        self._on_loaded(bool(getattr(self._executor, "loaded", False)))

    def _load(self) -> Executor:
        """Return the executor; before it is there the limit is 1, so that only one thread comes here."""
        if self._executor is None:
            cls = load_class(self._path)
            self._executor = cls(self._options)
            self._limit = max(1, cls.concurrency)
            self._grow()
        return self._executor


def _error(error: BaseException) -> dict[str, Any]:
    """Return the last line of a failed task, and leave the traceback in the log of the host."""
    if not isinstance(error, Cancelled):
        traceback.print_exception(error, file=sys.stderr)
    try:
        failure = failure_of(error)
    except MemoryError:
        failure = ExecutionFailure("out of memory", kind="oom")
    return {"t": "error", "failure": failure.to_wire(), "fatal": breaks_host(error)}
