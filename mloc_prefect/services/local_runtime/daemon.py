"""The daemon of one `MLOC_HOME` that owns the embedded server and the warm hosts.

It starts on demand (`runtime_client.ensure_runtime`), outlives the `mloc run` that started it, leaves after an idle
time and is stopped by `mloc down`. Server and hosts hang on lifelines: they end with the daemon, however that ends.
Its modules need the standard library only.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.errors import MlocError
from mloc_prefect.execution.hosts import HostPool, HostSpec
from mloc_prefect.hardware.host_memory import with_card_memory
from mloc_prefect.prefect_ext.server.embedded import EmbeddedServer
from mloc_prefect.prefect_ext.server.login_page import login_file
from mloc_prefect.prefect_ext.server.main import Private
from mloc_prefect.services.local_runtime.runtime_wire import (
    LINE_BYTES,
    WIRE,
    RuntimeConfig,
    RuntimeFiles,
    encode,
    fingerprint,
)
from mloc_prefect.services.secret_files import SecretFiles

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mloc_prefect.execution.hosts import HostExit
    from mloc_prefect.prefect_ext.server.embedded import ServerAddress

logger = logging.getLogger("mloc_prefect.runtime")

_IDLE_CHECK_SECONDS = 1.0


class RuntimeDaemon:
    """The state of the daemon, and the operations that clients request; one instance per process."""

    def __init__(self, config: RuntimeConfig, pool: HostPool, server: EmbeddedServer) -> None:
        self._config = config
        self._pool = pool
        self._server = server
        self._server_turn = asyncio.Lock()
        self._secrets = SecretFiles.below(Path(config.home))
        self._fingerprint = fingerprint(config)
        self._users: set[_Connection] = set()
        self._unused_since = _now()
        self.finished = asyncio.Event()
        self._operations: dict[str, Callable[[_Connection, dict[str, Any], Any], Awaitable[Any]]] = {
            "hello": self._hello,
            "status": self._status,
            "ensure_server": self._ensure_server,
            "acquire": self._acquire,
            "discard": self._discard,
            "exit_of": self._exit_of,
            "down": self._down,
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one client until it disconnects."""
        connection = _Connection(writer)
        try:
            while line := await reader.readline():
                connection.start(self._answer(connection, json.loads(line)))
        except (ConnectionError, ValueError, asyncio.LimitOverrunError) as error:
            logger.warning("client dropped: %s", error)
        finally:
            self._users.discard(connection)
            self._unused_since = _now()
            await connection.close()

    async def watch_idle(self) -> None:
        """Finish when no client has used the runtime for the idle time."""
        while not self.finished.is_set():
            if self._users:
                self._unused_since = _now()
            elif _now() - self._unused_since >= self._config.idle_seconds:
                logger.info("idle for %g s, leaving", self._config.idle_seconds)
                self.finished.set()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.finished.wait(), min(_IDLE_CHECK_SECONDS, self._config.idle_seconds))

    async def _answer(self, connection: _Connection, message: dict[str, Any]) -> None:
        number, operation = message.pop("id"), message.pop("op")

        def progress(text: str) -> None:
            connection.send({"id": number, "progress": text})

        try:
            result = await self._operations[operation](connection, message, progress)
        except MlocError as error:
            connection.send({"id": number, "error": {"message": error.message, "hint": error.hint}})
        except Exception as error:  # boundary: one bad request must not end the runtime of all clients
            logger.exception("operation %s failed", operation)
            connection.send({"id": number, "error": {"message": f"{type(error).__name__}: {error}", "hint": None}})
        else:
            connection.send({"id": number, "result": result})

    async def _hello(self, connection: _Connection, message: dict[str, Any], progress: Any) -> dict[str, Any]:
        del progress
        if message.get("use"):
            self._users.add(connection)
        others = len(self._users - {connection})
        return {"wire": WIRE, "pid": os.getpid(), "fingerprint": self._fingerprint, "users": others}

    async def _status(self, connection: _Connection, message: dict[str, Any], progress: Any) -> dict[str, Any]:
        del message, progress
        address = self._server.poll() if self._server.running else None
        return {
            "pid": os.getpid(),
            "fingerprint": self._fingerprint,
            "users": len(self._users - {connection}),
            "server": {"pid": address.pid, **self._reach(address)} if address else None,
            "hosts": await asyncio.to_thread(with_card_memory, self._pool.snapshot()),
        }

    async def _ensure_server(self, connection: _Connection, message: dict[str, Any], progress: Any) -> dict[str, Any]:
        del message
        self._users.add(connection)
        if self._server_turn.locked():
            progress("waiting for the embedded Prefect server")
        async with self._server_turn:
            address = await self._server.ready(on_progress=progress)
            self._secrets.write(self._secrets.prefect_page, login_file(address.ui_url, self._secrets.prefect_login()))
        return self._reach(address)

    def _reach(self, address: ServerAddress) -> dict[str, str]:
        """Return how clients reach the server; the login itself stays in its file."""
        return {"api_url": address.api_url, "ui_url": address.ui_url, "auth_file": str(self._secrets.prefect_auth)}

    async def _acquire(self, connection: _Connection, message: dict[str, Any], progress: Any) -> dict[str, Any]:
        del progress
        self._users.add(connection)
        return asdict(await self._pool.acquire(HostSpec.from_wire(message["spec"])))

    async def _discard(self, connection: _Connection, message: dict[str, Any], progress: Any) -> dict[str, Any] | None:
        del connection, progress
        return _exit(await self._pool.discard(message["key"], pid=message["pid"]))

    async def _exit_of(self, connection: _Connection, message: dict[str, Any], progress: Any) -> dict[str, Any] | None:
        del connection, progress
        return _exit(await self._pool.exit_of(message["key"], pid=message["pid"]))

    async def _down(self, connection: _Connection, message: dict[str, Any], progress: Any) -> list[str]:
        status = await self._status(connection, message, progress)
        ended = [f"warm host of {host['executor']} (process {host['pid']})" for host in status["hosts"]]
        if status["server"]:
            ended.append(f"Prefect server {status['server']['ui_url']} (process {status['server']['pid']})")
        ended.append(f"local runtime (process {os.getpid()})")
        asyncio.get_running_loop().call_soon(self.finished.set)
        return ended


class _Connection:
    """One client: its requests run at the same time and end with it."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._requests: set[asyncio.Task[None]] = set()

    def start(self, request: Any) -> None:
        """Run a request concurrently with the others."""
        task = asyncio.ensure_future(request)
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)

    def send(self, message: dict[str, Any]) -> None:
        """Queue one message; one for a client that has disconnected is dropped."""
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    async def close(self) -> None:
        """Let running requests finish (a host that is starting is kept warm for the next client)."""
        if self._requests:
            await asyncio.wait(self._requests)
        with suppress(ConnectionError):
            self._writer.close()
            await self._writer.wait_closed()


def main() -> None:
    """Become a daemon and serve; `python -m mloc_prefect.services.local_runtime.daemon CONFIG READY-DESCRIPTOR`.

    The starter waits on the pipe `READY-DESCRIPTOR`: it reads `ready`, `taken` (another one runs or starts), or
    nothing (this one ended; its log says why).
    """
    config = RuntimeConfig(**json.loads(sys.argv[1]))
    ready = int(sys.argv[2])
    if os.fork():
        os._exit(0)  # the starter reaps this process; the child belongs to init
    files = RuntimeFiles.below(Path(config.home))
    os.chdir(config.home)
    os.umask(0o077)
    if not files.lock.acquire():  # never released: it lasts as long as this process
        os.write(ready, b"taken")
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        asyncio.run(_run(config, files, ready))
    finally:
        files.socket.unlink(missing_ok=True)


async def _run(config: RuntimeConfig, files: RuntimeFiles, ready: int) -> None:
    login = SecretFiles.below(Path(config.home)).prefect_login()
    server = EmbeddedServer(Path(config.home), config.server_port, private=Private(auth=login))
    async with HostPool(files.directory, config.host_idle_seconds, config.host_start_seconds) as pool:
        runtime = RuntimeDaemon(config, pool, server)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, runtime.finished.set)
        files.socket.unlink(missing_ok=True)
        os.umask(0o177)
        listener = await asyncio.start_unix_server(runtime.serve, files.socket, limit=LINE_BYTES)
        os.umask(0o077)
        os.write(ready, b"ready")
        os.close(ready)
        logger.info("ready, process %d", os.getpid())
        try:
            await runtime.watch_idle()
        finally:
            listener.close()
            files.socket.unlink(missing_ok=True)
            await server.stop()
    logger.info("ended")


def _exit(outcome: HostExit | None) -> dict[str, Any] | None:
    return None if outcome is None else asdict(outcome)


def _now() -> float:
    return asyncio.get_running_loop().time()


if __name__ == "__main__":
    main()
