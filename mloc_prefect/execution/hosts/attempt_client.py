"""Runs one attempt on a host: its events, its time limits and its end."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mloc_prefect.errors import DispatchError, ExecutionError, ExecutionFailure
from mloc_prefect.execution.failures import looks_out_of_memory
from mloc_prefect.execution.host_types import Host, HostExit, HostProvider, HostSpec
from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionRequest, ExecutionResult
from mloc_prefect.execution.wire import LINE_LIMIT, REQUEST_LIMIT, decode, encode

logger = logging.getLogger(__name__)

CANCEL_SECONDS = 3.0
"""How long a host may take to drop a cancelled task before it is ended."""

MOST_PATIENCE = 120.0
"""The longest that a cancelled task may take to save its work."""

RETRY_PAUSES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds before each try to find a host that takes the task."""

OnEvent = Callable[[ExecutionEvent], None]


async def execute(
    request: ExecutionRequest,
    spec: HostSpec,
    hosts: HostProvider,
    *,
    on_event: OnEvent,
    timeout: float | None,  # the limit of the task, not of this call
    stall: float,
    cancel_seconds: float = CANCEL_SECONDS,
    retry_pauses: Sequence[float] = RETRY_PAUSES,
) -> ExecutionResult:
    """Run one attempt on a host of `spec` and return its result.

    Cancelling the caller cancels the task: the host gets `cancel_seconds` to drop it, then it is ended.

    Args:
        request: The attempt.
        spec: The host that it needs.
        hosts: The owner of hosts.
        on_event: Called with each event, in order, on the event loop.
        timeout: Seconds that the task may run (`spec.timeoutSec`), counted from when a worker of the host takes it.
        stall: Seconds without any event after which a running task is taken to hang, and its host is ended.
        cancel_seconds: How long the host may take to drop a cancelled task before it is ended.
        retry_pauses: Seconds before each try to find a host that takes the task.

    Raises:
        ExecutionError: The attempt failed; `.failure` has the facts.
        DispatchError: No host could be had.
    """
    for pause in retry_pauses:
        await asyncio.sleep(pause)
        host = await hosts.acquire(spec)
        attempt = _Attempt(request, host, hosts, on_event=on_event, timeout=timeout, stall=stall, cancel=cancel_seconds)
        try:
            return await attempt.run_attempt()
        except _NotAcceptedError:  # the host left between `acquire` and our connection: nothing was begun
            logger.debug("host %s left before it took the task", host.key)
    raise DispatchError(f"executor hosts of {spec.executor} leave before they take the task")


class _NotAcceptedError(Exception):
    """The host did not accept the task."""


class _ConnectionLostError(Exception):
    """The connection ended while the task ran."""


class _Attempt:
    def __init__(
        self,
        request: ExecutionRequest,
        host: Host,
        hosts: HostProvider,
        *,
        on_event: OnEvent,
        timeout: float | None,
        stall: float,
        cancel: float,
    ) -> None:
        self._request = request
        self._host = host
        self._hosts = hosts
        self._on_event = on_event
        self._timeout = timeout
        self._stall = stall
        self._cancel_seconds = cancel
        self._started: float | None = None
        self._accepted = False

    async def run_attempt(self) -> ExecutionResult:
        """Run the task on the host."""
        try:
            reader, writer = await asyncio.open_unix_connection(self._host.socket, limit=LINE_LIMIT)
        except OSError as error:
            raise _NotAcceptedError from error
        try:
            return await self._converse(reader, writer)
        except _ConnectionLostError:
            raise _error_of(await self._exit_failure()) from None
        except asyncio.CancelledError:
            await self._cancel(reader, writer)
            raise
        finally:
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> ExecutionResult:
        try:
            writer.write(await _request_line(self._request))
            async with asyncio.timeout(None) as watch:
                return await self._listen(reader, watch)
        except TimeoutError:
            if not watch.expired():
                raise
            raise _error_of(await self._overdue(reader, writer)) from None

    async def _listen(self, reader: asyncio.StreamReader, watch: asyncio.Timeout) -> ExecutionResult:
        """Take lines until the last one."""
        while True:
            message = await self._message(reader)
            kind = message.get("t")
            if kind == "event":
                self._on_event(ExecutionEvent(message["kind"], message["data"], message["ts"]))
            elif kind == "accepted":
                self._accepted = True
            elif kind == "started":
                self._started = asyncio.get_running_loop().time()
            elif kind in {"result", "error"}:
                watch.reschedule(None)
                return await self._finish(message)
            watch.reschedule(self._deadline())

    async def _message(self, reader: asyncio.StreamReader) -> dict[str, Any]:
        try:
            line = await reader.readline()
        except (OSError, ValueError) as error:  # ValueError: longer than any line of ours
            raise (_ConnectionLostError if self._accepted else _NotAcceptedError) from error
        if not line.endswith(b"\n"):
            raise _ConnectionLostError if self._accepted else _NotAcceptedError
        return decode(line)

    def _deadline(self) -> float | None:
        """Return the loop time at which the attempt is overdue; a task that waits for a worker has no limit."""
        if self._started is None:
            return None
        now = asyncio.get_running_loop().time()
        limits = [now + self._stall]
        if self._timeout is not None:
            limits.append(self._started + self._timeout)
        return min(limits)

    async def _finish(self, message: dict[str, Any]) -> ExecutionResult:
        """Return the result in the last line, or raise the failure in it."""
        if message["t"] == "result":
            return ExecutionResult(
                path=message["path"],
                summary=message["summary"],
                host_pid=message["pid"],
                reused_rows=message["reused_rows"],
            )
        failure = ExecutionFailure.from_wire(message["failure"])
        if message.get("fatal"):  # out of memory, or the device context is lost: the process is useless
            how = await self._hosts.discard(self._host.key, pid=self._host.pid)
            if how is not None and how.oom and failure.kind == "error":  # a process of the engine was the victim
                failure = replace(failure, kind="oom", message=f"out of memory: {failure.message}")
        raise _error_of(failure)

    async def _overdue(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> ExecutionFailure:
        """End the task that ran too long, or the host that reports nothing."""
        assert self._started is not None
        if self._timeout is not None and asyncio.get_running_loop().time() >= self._started + self._timeout:
            await self._cancel(reader, writer)
            message = f"the task ran longer than its limit of {self._timeout:g} s (spec.timeoutSec)"
            return ExecutionFailure(message, kind="timeout")
        how = await self._hosts.discard(self._host.key, pid=self._host.pid)
        message = f"the executor reported nothing for {self._stall:g} s and was ended"
        return ExecutionFailure(message, kind="stalled", log_tail=how.log_tail if how else "")

    async def _exit_failure(self) -> ExecutionFailure:
        how = await self._hosts.exit_of(self._host.key, pid=self._host.pid)
        if how is None:
            how = await self._hosts.discard(self._host.key, pid=self._host.pid)
            message = "the executor process closed the connection without a result"
            return ExecutionFailure(message, kind="error", log_tail=how.log_tail if how else "")
        return _failure_of_exit(how)

    async def _cancel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Ask the host to drop the task; end the host if it does not. A second cancellation does not stop this."""
        await asyncio.shield(asyncio.create_task(self._drop(reader, writer)))

    async def _drop(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._cancel_seconds) as watch:
                writer.write_eof()
                while line := await reader.readline():
                    if patience := _patience_in(line):
                        watch.reschedule(loop.time() + patience)
        except TimeoutError:
            logger.warning("host %s does not drop a cancelled task, ending it", self._host.key)
            await self._hosts.discard(self._host.key, pid=self._host.pid)
        except (OSError, ValueError):  # it has ended by itself, or sends a line longer than any of ours
            return


def _patience_in(line: bytes) -> float | None:
    """Return the seconds that the host asks for, to finish what would be lost otherwise."""
    if not line.endswith(b"\n"):
        return None
    message = decode(line)
    patience = message["data"].get("patience") if message.get("t") == "event" else None
    return min(float(patience), MOST_PATIENCE) if patience else None


async def _request_line(request: ExecutionRequest) -> bytes:
    """Return the line that starts the task; a large request goes through a file."""
    line = encode({"op": "run", "request": request.to_wire()})
    if len(line) <= REQUEST_LIMIT:
        return line
    path = Path(request.attempt_dir) / f"request.{os.urandom(4).hex()}.json"
    await asyncio.to_thread(_write_private, path, encode(request.to_wire()))
    return encode({"op": "run", "request_file": str(path)})


def _write_private(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(data)


def _failure_of_exit(how: HostExit) -> ExecutionFailure:
    if how.oom or (how.signal != "SIGKILL" and looks_out_of_memory(how.log_tail)):
        return ExecutionFailure(
            "the executor process ended: out of memory",
            kind="oom",
            signal=how.signal,
            exit_code=how.exit_code,
            log_tail=how.log_tail,
        )
    if how.signal is not None:
        return ExecutionFailure(
            f"the executor process was killed by {how.signal}", kind="killed", signal=how.signal, log_tail=how.log_tail
        )
    message = f"the executor process ended with exit code {how.exit_code} before the task was done"
    return ExecutionFailure(message, kind="exited", exit_code=how.exit_code, log_tail=how.log_tail)


def _error_of(failure: ExecutionFailure) -> ExecutionError:
    return ExecutionError(failure.message, retryable=failure.retryable, hint=failure.hint, failure=failure)
