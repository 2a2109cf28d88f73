"""The socket of a host and its clients, in one thread. Standard library only."""

from __future__ import annotations

import os
import selectors
import socket
import struct
import time
from collections import deque
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.failures import failure_of
from mloc_prefect.execution.host.task_runner import HostTask, TaskRunner
from mloc_prefect.execution.host_types import loaded_mark
from mloc_prefect.execution.leased_devices import leased_gpus
from mloc_prefect.execution.protocol import Cancelled, ExecutionRequest
from mloc_prefect.execution.wire import LINE_LIMIT, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CANCEL_GRACE = 10.0
"""Seconds after which a cancelled task that continues is taken to hang its host."""

FIRST_TASK_SECONDS = 60.0
"""Seconds that a host waits for its first task, even when its idle time is shorter."""

_HELLO_SECONDS = 30.0  # a client that connects and sends nothing does not keep a host alive for longer
_SEND_SECONDS = 60  # a client that does not read for so long is taken to have disconnected


def listen(path: Path) -> socket.socket:
    """Return a listening socket at `path`, mode 0600; it appears there only when clients can connect."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    listener.bind(str(fresh))
    fresh.chmod(0o600)
    listener.listen(1024)
    listener.setblocking(False)
    fresh.replace(path)
    return listener


class _Connection:
    """One client: the bytes it has sent so far, and its task once that is known."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.since = time.monotonic()
        self.buffer = bytearray()
        self.task: HostTask | None = None
        self.registered = True


class HostServer:
    """Takes requests, hands them to a `TaskRunner`, cancels tasks of clients that leave, and leaves when idle.

    Args:
        path: Where to listen.
        executor: `package.module:Class`.
        options: Engine options.
        idle_seconds: Leave after so long without a task; 0 = after the first task; None = never.
        on_hung: Called when a cancelled task does not end within `CANCEL_GRACE`.
    """

    def __init__(
        self,
        path: Path,
        executor: str,
        options: Mapping[str, Any],
        *,
        idle_seconds: float | None,
        on_hung: Callable[[], None],
    ) -> None:
        self.runner = TaskRunner(executor, options, self._finished, self._note_loaded)
        self._loaded = False
        self._path = path
        self._executor = executor
        self._idle_seconds = idle_seconds
        self._on_hung = on_hung
        self._running: dict[HostTask, _Connection] = {}
        self._silent: set[_Connection] = set()
        self._done: deque[HostTask] = deque()
        self._answers: deque[tuple[_Connection, dict[str, Any]]] = deque()
        self._served = 0
        self._idle_since = time.monotonic()
        self._stopping = False
        self._aborted = False
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_in.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_out, selectors.EVENT_READ, self._woken)
        self._listener = listen(path)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def serve(self) -> None:
        """Serve on this thread until the host leaves; then the workers of `runner` end too."""
        while not self._leaves():
            for key, _ in self._selector.select(self._patience()):
                key.data()
            self._check_limits()
        self._close()

    def abort(self) -> None:
        """Leave at once, from any thread: running tasks are cancelled and their clients cut off."""
        self._aborted = True
        self._wake()

    def _leaves(self) -> bool:
        if self._aborted:
            return True
        if self._running or self._silent:
            return False
        return self._stopping or self._idle_left() <= 0

    def _idle_left(self) -> float:
        """Return the seconds until an idle host leaves."""
        if self._idle_seconds is None:
            return 3600.0
        allowed = self._idle_seconds if self._served else max(self._idle_seconds, FIRST_TASK_SECONDS)
        return self._idle_since + allowed - time.monotonic()

    def _patience(self) -> float | None:
        """Return how long the selector may wait."""
        if self._silent or any(task.cancelled.is_set() for task in self._running):
            return 0.5
        return None if self._running else max(0.0, self._idle_left())

    def _check_limits(self) -> None:
        """End connections that send nothing, and the host when a cancelled task hangs it."""
        now = time.monotonic()
        for conn in [c for c in self._silent if now - c.since > _HELLO_SECONDS]:
            self._drop(conn)
        if any(_hangs(task, now) for task in self._running):
            self._on_hung()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:  # the client left between the two calls
            return
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", _SEND_SECONDS, 0))
        conn = _Connection(sock)
        self._silent.add(conn)
        self._selector.register(sock, selectors.EVENT_READ, partial(self._readable, conn))

    def _readable(self, conn: _Connection) -> None:
        try:
            data = conn.sock.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._client_left(conn)
            return
        if conn.task is not None:  # nothing more is expected after the request
            return
        conn.buffer += data
        if b"\n" in data:
            self._dispatch(conn, bytes(conn.buffer))
        elif len(conn.buffer) > LINE_LIMIT:
            self._answer(conn, {"t": "error", "failure": {"message": "request line too long", "kind": "user"}})

    def _client_left(self, conn: _Connection) -> None:
        """Handle a client that has closed, or has shut its sending side to cancel."""
        if conn.task is None:
            self._drop(conn)
            return
        self._unregister(conn)
        conn.task.cancel()
        if conn.task.claim():  # it still waited for a worker
            failure = failure_of(Cancelled())
            conn.task.send({"t": "error", "failure": failure.to_wire(), "fatal": False})
            self._done.append(conn.task)
            self._reap()

    def _dispatch(self, conn: _Connection, line: bytes) -> None:
        self._silent.discard(conn)
        conn.buffer.clear()
        try:
            message = decode(line)
            op = message.get("op")
            request = _request(message) if op == "run" else None
        except (ValueError, TypeError, OSError) as error:
            self._answer(conn, {"t": "error", "failure": {"message": f"bad request: {error}", "kind": "user"}})
            return
        if request is not None:
            self._start(conn, request)
        elif op == "ping":
            self._answer(conn, self._pong())
        elif op == "sleep":
            self._sleep(conn)
        elif op == "stop":
            unused = "devices" in message and not set(message["devices"]) & set(leased_gpus())
            ok = not unused and self._stop(if_idle=bool(message.get("if_idle")))
            self._answer(conn, {"t": "stopping", "ok": ok, "pid": os.getpid()})
        else:
            self._answer(conn, {"t": "error", "failure": {"message": f"unknown operation {op!r}", "kind": "user"}})

    def _start(self, conn: _Connection, request: ExecutionRequest) -> None:
        if self._stopping:  # not accepted: the client takes another host
            self._drop(conn)
            return
        conn.task = HostTask(request, conn.sock)
        self._running[conn.task] = conn
        conn.task.send({"t": "accepted", "pid": os.getpid()})
        self.runner.submit(conn.task)

    def _pong(self) -> dict[str, Any]:
        idle = 0.0 if self._running else time.monotonic() - self._idle_since
        return {
            "t": "pong",
            "pid": os.getpid(),
            "executor": self._executor,
            "tasks": len(self._running),
            "served": self._served,
            "idle_seconds": round(idle, 3),
        }

    def _sleep(self, conn: _Connection) -> None:
        """Let the executor give back the memory of its device, when no task is here; the answer comes when it has."""
        if self._busy():
            self._answer(conn, {"t": "asleep", "ok": False})
            return

        def done(ok: bool) -> None:
            self._answers.append((conn, {"t": "asleep", "ok": ok}))
            self._wake()

        self.runner.sleep(done)

    def _busy(self) -> bool:
        return any(not task.ended for task in self._running)

    def _stop(self, *, if_idle: bool) -> bool:
        if if_idle and self._busy():
            return False
        self._stopping = True
        self._path.unlink(missing_ok=True)
        return True

    def _answer(self, conn: _Connection, message: Mapping[str, Any]) -> None:
        with suppress(OSError):
            conn.sock.sendall(encode(message))
        self._drop(conn)

    def _drop(self, conn: _Connection) -> None:
        self._silent.discard(conn)
        self._unregister(conn)
        conn.sock.close()

    def _unregister(self, conn: _Connection) -> None:
        if conn.registered:
            conn.registered = False
            self._selector.unregister(conn.sock)

    def _finished(self, task: HostTask) -> None:
        """Called by workers."""
        self._done.append(task)
        self._wake()

    def _note_loaded(self, loaded: bool) -> None:
        """Called by workers: keep a mark beside the socket while a model is loaded; the owner need not ask."""
        if loaded == self._loaded:
            return
        self._loaded = loaded
        with suppress(OSError):  # it is for displays only
            mark = loaded_mark(self._path)
            mark.touch(mode=0o600) if loaded else mark.unlink(missing_ok=True)

    def _wake(self) -> None:
        with suppress(OSError):  # full means that a wake-up is under way already
            self._wake_in.send(b"x")

    def _woken(self) -> None:
        self._wake_out.recv(4096)
        self._reap()

    def _reap(self) -> None:
        """Close the connections of finished tasks and answered questions; only this thread closes any."""
        while self._answers:
            conn, message = self._answers.popleft()
            if conn.registered:  # else the client has left
                self._answer(conn, message)
        while self._done:
            conn = self._running.pop(self._done.popleft())
            self._drop(conn)
            self._served += 1
            self._idle_since = time.monotonic()

    def _close(self) -> None:
        self._path.unlink(missing_ok=True)  # first, so that no new client finds the way here
        self._listener.close()
        for task, conn in list(self._running.items()):
            with suppress(OSError):  # cut off first: a client must not read that its task was cancelled
                conn.sock.shutdown(socket.SHUT_RDWR)
            task.cancel()
            self._drop(conn)
        for conn in list(self._silent):
            self._drop(conn)
        self._selector.close()
        self.runner.stop()


def _hangs(task: HostTask, now: float) -> bool:
    """Return whether a cancelled task continues for longer than it may."""
    return task.cancelled_at is not None and now > max(task.cancelled_at + CANCEL_GRACE, task.patient_until)


def _request(message: Mapping[str, Any]) -> ExecutionRequest:
    """Return the request in `message`, or in the file that it names."""
    if "request_file" in message:
        path = Path(message["request_file"])
        data = decode(path.read_bytes())
        path.unlink()
    else:
        data = message["request"] if isinstance(message.get("request"), dict) else {}
    return ExecutionRequest.from_wire(data)
