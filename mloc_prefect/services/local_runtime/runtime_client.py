"""The client side of the local runtime: start it on demand, use its server and hosts, end it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from mloc_prefect.errors import DispatchError
from mloc_prefect.execution.hosts import Host, HostExit, HostSpec
from mloc_prefect.process.log_tail import last_line
from mloc_prefect.services.local_runtime.runtime_wire import (
    LINE_BYTES,
    WIRE,
    RuntimeConfig,
    RuntimeFiles,
    base_environment,
    encode,
    fingerprint,
    host_environment,
)
from mloc_prefect.services.secret_files import read_login

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mloc_prefect.execution.hosts import HostProvider
    from mloc_prefect.process.lock_file import LockFile
    from mloc_prefect.settings import MlocSettings

_START_SECONDS = 20.0
_END_SECONDS = 15.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class RuntimeClient:
    """A live local runtime, held as long as this object's connection is open.

    Attributes:
        api_url: Value for `PREFECT_API_URL`, or None when no server was asked for.
        ui_url: Address of Prefect's web pages, or None.
        auth: `user:password` of the API, or None.
        hosts: Warm hosts of this machine.
        pid: Process of the runtime.
    """

    api_url: str | None
    ui_url: str | None
    hosts: HostProvider
    pid: int
    _connection: RuntimeConnection
    auth: str | None = field(default=None, repr=False)

    async def aclose(self) -> None:
        """Disconnect from the runtime; it stays for its idle time."""
        await self._connection.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def ensure_runtime(
    settings: MlocSettings, *, server: bool = True, on_progress: Callable[[str], None] | None = None
) -> RuntimeClient:
    """Return the runtime of `settings.home`, started now if there is none.

    A runtime of other code (another version, interpreter, or edited files) or other settings is replaced when it has no
    users.

    Args:
        settings: Where it lives and how long it stays.
        server: Also start the embedded Prefect server and wait until it answers.
        on_progress: Called with one line for each thing that takes time.

    Raises:
        DispatchError: The runtime or its server could not be started; or one of another version is in use.
    """
    report = on_progress or _ignore
    connection, pid = await _connect_current(settings, report)
    try:
        addresses = await connection.request("ensure_server", on_progress=report) if server else {}
    except BaseException:
        await connection.aclose()
        raise
    return RuntimeClient(
        api_url=addresses.get("api_url"),
        ui_url=addresses.get("ui_url"),
        hosts=RemoteHosts(connection),
        pid=pid,
        _connection=connection,
        auth=read_login(addresses.get("auth_file")),
    )


async def runtime_status(settings: MlocSettings) -> dict[str, Any] | None:
    """Return what the runtime of `settings.home` owns: `pid`, `users`, `server`, `hosts`; None when none runs."""
    connection = await _connect(RuntimeFiles.below(settings.home))
    if connection is None:
        return None
    try:
        status: dict[str, Any] = await connection.request("status")
        return status
    finally:
        await connection.aclose()


async def stop_runtime(settings: MlocSettings) -> list[str]:
    """End the runtime of `settings.home` with its server and all hosts; returns what was ended, one phrase each.

    Raises:
        DispatchError: It could not be ended.
    """
    files = RuntimeFiles.below(settings.home)
    connection = await _connect(files)
    if connection is None:
        holder = files.lock.holder()
        if holder is None:
            return []
        os.kill(holder, signal.SIGKILL)  # it holds the lock and does not answer; server and hosts end with it
        ended = [f"local runtime (process {holder}, it did not answer)"]
    else:
        try:
            ended = await connection.request("down")
        finally:
            await connection.aclose()
    await _wait_released(files.lock)
    return ended


class RuntimeConnection:
    """A connection to the runtime: numbered requests, answers in any order."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[asyncio.Future[Any], Callable[[str], None]]] = {}
        self._receiver = asyncio.create_task(self._receive())

    async def request(
        self, operation: str, *, on_progress: Callable[[str], None] | None = None, **arguments: Any
    ) -> Any:
        """Send one request and return its result.

        Raises:
            DispatchError: The runtime refused it or has ended.
        """
        if self._receiver.done():
            raise _ended_error()
        number = next(self._numbers)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (answer, on_progress or _ignore)
        try:
            self._writer.write(encode({"id": number, "op": operation, **arguments}))
            await self._writer.drain()
            return await answer
        except ConnectionError:
            raise _ended_error() from None
        finally:
            del self._waiting[number]

    async def aclose(self) -> None:
        """Close the connection."""
        self._receiver.cancel()
        with suppress(asyncio.CancelledError):
            await self._receiver
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    async def _receive(self) -> None:
        try:
            while line := await self._reader.readline():
                self._dispatch(json.loads(line))
        except ConnectionError:
            pass  # the same as an orderly end: requests that wait fail below
        finally:
            for answer, _ in self._waiting.values():
                if not answer.done():
                    answer.set_exception(_ended_error())

    def _dispatch(self, message: Mapping[str, Any]) -> None:
        answer, progress = self._waiting.get(message["id"], (None, _ignore))
        if answer is None or answer.done():
            return  # the caller was cancelled in the meantime
        if "progress" in message:
            progress(message["progress"])
        elif "error" in message:
            answer.set_exception(DispatchError(message["error"]["message"], hint=message["error"]["hint"]))
        else:
            answer.set_result(message["result"])


class RemoteHosts:
    """The runtime's hosts as a `HostProvider`; they run with the environment of *this* process's user."""

    def __init__(self, connection: RuntimeConnection) -> None:
        self._connection = connection

    async def acquire(self, spec: HostSpec) -> Host:
        """Start or reuse the host for `spec` and the user's environment."""
        complete = replace(spec, env={**host_environment(), **spec.env})
        return Host(**await self._connection.request("acquire", spec=complete.to_wire()))

    async def discard(self, key: str, *, pid: int | None = None) -> HostExit | None:
        """End a host now, with all its descendants; see `HostProvider`."""
        return await self._about("discard", key, pid)

    async def exit_of(self, key: str, *, pid: int | None = None) -> HostExit | None:
        """Return how a host ended, or None when it lives on; see `HostProvider`."""
        return await self._about("exit_of", key, pid)

    async def _about(self, operation: str, key: str, pid: int | None) -> HostExit | None:
        answer = await self._connection.request(operation, key=key, pid=pid)
        return None if answer is None else HostExit(**answer)


async def _connect_current(settings: MlocSettings, report: Callable[[str], None]) -> tuple[RuntimeConnection, int]:
    """Return a connection to a runtime that runs this code, if it can be had without disturbing others, and its pid."""
    files = RuntimeFiles.below(settings.home)
    connection = await _connect(files) or await _start(settings, files)
    try:
        hello = await connection.request("hello", use=True)
    except DispatchError:  # the runtime was about to leave
        await connection.aclose()
        connection = await _start(settings, files)
        hello = await connection.request("hello", use=True)
    if hello["fingerprint"] == fingerprint(RuntimeConfig.of(settings)):
        return connection, hello["pid"]
    if hello["users"] and hello["wire"] == WIRE:
        report("another run uses a local runtime of other code or settings; using it too")
        return connection, hello["pid"]
    await connection.aclose()
    if hello["users"]:
        raise DispatchError(
            f"a local runtime of another version is in use (process {hello['pid']})",
            hint="wait for its run, or end it with `mloc down`",
        )
    report("replacing the local runtime: its code or settings have changed")
    await stop_runtime(settings)
    connection = await _start(settings, files)
    return connection, (await connection.request("hello", use=True))["pid"]


async def _connect(files: RuntimeFiles) -> RuntimeConnection | None:
    try:
        return RuntimeConnection(*await asyncio.open_unix_connection(files.socket, limit=LINE_BYTES))
    except (FileNotFoundError, ConnectionError):
        return None


async def _start(settings: MlocSettings, files: RuntimeFiles) -> RuntimeConnection:
    """Start a runtime, or wait for the one that another process starts at this moment."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        outcome = await asyncio.to_thread(_spawn, settings, files)
        connection = await _connect(files)
        if connection is not None:
            return connection
        if outcome not in {"ready", "taken"}:
            raise DispatchError(
                f"the local runtime did not start: {last_line(files.log)}", hint=f"its log is {files.log}"
            )
        await asyncio.sleep(_POLL_SECONDS)
    raise DispatchError("the local runtime does not answer", hint="end it with `mloc down` and try again")


def _spawn(settings: MlocSettings, files: RuntimeFiles) -> str:
    """Start the daemon; returns `ready`, `taken`, or nothing when it ended at once."""
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    files.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    read_end, write_end = os.pipe()
    config = json.dumps(RuntimeConfig.of(settings).to_wire())
    with os.fdopen(read_end, "rb") as ready:
        try:
            with files.log.open("ab") as log:
                # -P: the user's working directory is no place to import from; own session: Ctrl-C ends only the run
                subprocess.run(
                    [sys.executable, "-P", "-m", "mloc_prefect.services.local_runtime.daemon", config, str(write_end)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=base_environment(),
                    pass_fds=(write_end,),
                    start_new_session=True,
                    check=False,
                )
        finally:
            os.close(write_end)
        return ready.read().decode()


async def _wait_released(lock: LockFile) -> None:
    deadline = time.monotonic() + _END_SECONDS
    while (holder := lock.holder()) is not None:
        if time.monotonic() > deadline:
            raise DispatchError(f"the local runtime (process {holder}) does not end", hint=f"kill -9 {holder}")
        await asyncio.sleep(_POLL_SECONDS)


def _ended_error() -> DispatchError:
    return DispatchError("the local runtime has ended", hint="run the command again; it starts a new one")


def _ignore(_text: str) -> None:
    return
