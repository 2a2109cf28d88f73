"""`MemoryHosts`: the twin of `HostPool` for tests; executors run in threads of this process, over the same sockets."""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_prefect.errors import DispatchError
from mloc_prefect.execution.host.host_server import HostServer
from mloc_prefect.execution.host_types import Host, HostExit, HostSpec

if TYPE_CHECKING:
    from types import TracebackType


@dataclass(frozen=True, slots=True)
class _Running:
    host: Host
    server: HostServer
    threads: tuple[threading.Thread, ...]

    @property
    def alive(self) -> bool:
        return self.threads[0].is_alive()


class MemoryHosts:
    """Hosts that are threads.

    Discarding one cuts its clients off, as a kill does; an executor that never calls `context.check` cannot be ended
    and continues unnoticed.

    Attributes:
        starts: Specs of the hosts started so far, in order.
    """

    def __init__(self, *, idle_seconds: float | None = None) -> None:
        self.starts: list[HostSpec] = []
        self._idle_seconds = idle_seconds
        self._hosts: dict[str, _Running] = {}
        self._exits: dict[str, HostExit] = {}
        self._numbers = itertools.count()
        self._dir = tempfile.TemporaryDirectory(prefix="mloc-")

    async def __aenter__(self) -> MemoryHosts:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def acquire(self, spec: HostSpec) -> Host:
        """Return a host of `spec`; see `HostProvider`."""
        key = spec.key
        running = self._hosts.get(key)
        if running is None or not running.alive:
            running = self._start(spec, key)
        return running.host

    async def discard(self, key: str, *, pid: int | None = None) -> HostExit | None:
        """Cut the host off; see `HostProvider`."""
        del pid  # every host has the same
        running = self._hosts.pop(key, None)
        if running is None:
            return self._exits.get(key)
        how = self._exits[key] = HostExit(None, "SIGKILL")
        running.server.abort()
        await asyncio.to_thread(running.threads[0].join, 5.0)
        return how

    async def exit_of(self, key: str, *, pid: int | None = None) -> HostExit | None:
        """Return how the host ended; see `HostProvider`."""
        del pid
        running = self._hosts.get(key)
        if running is None:
            return self._exits.get(key)
        return None if running.alive else HostExit(0, None)

    async def close(self) -> None:
        """Discard all."""
        for key in list(self._hosts):
            await self.discard(key)
        self._dir.cleanup()

    def _start(self, spec: HostSpec, key: str) -> _Running:
        path = Path(self._dir.name) / f"{key}-{next(self._numbers)}.sock"
        try:
            server = HostServer(path, spec.executor, spec.options, idle_seconds=self._idle_seconds, on_hung=_stay)
        except OSError as error:
            raise DispatchError(f"cannot listen on {path}: {error}") from error
        threads = tuple(
            threading.Thread(target=target, name=f"mloc-memory-{key}", daemon=True)
            for target in (server.serve, server.runner.work)
        )
        for thread in threads:
            thread.start()
        host = Host(key=key, socket=str(path), pid=os.getpid(), log=os.devnull)
        self._hosts[key] = _Running(host, server, threads)
        self.starts.append(spec)
        return self._hosts[key]


def _stay() -> None:
    """A thread cannot be ended from outside."""
