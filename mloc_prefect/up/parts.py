"""The parts of `mloc up`: each can be started, says when it is ready and when it has ended, and can be stopped."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from mloc_prefect.errors import DispatchError
from mloc_prefect.up.logs import tail
from mloc_prefect.up.notify import VARIABLE, ReadySocket
from mloc_prefect.up.process import CommandProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from mloc_prefect.orchestrate.embedded import EmbeddedServer, ServerAddress

READY_SECONDS = 120.0
_LOOK_SECONDS = 0.2


class Part(Protocol):
    """One process of `mloc up`, started again after it has ended."""

    name: str
    log: Path

    @property
    def pid(self) -> int | None:
        """Its process while it runs."""
        ...

    async def start(self) -> None:
        """Start it and return when it is ready.

        Raises:
            DispatchError: It ended or was not ready in time; nothing of it is left.
        """
        ...

    async def ended(self) -> str:
        """Wait until it has ended; returns how, in words."""
        ...

    async def stop(self, grace: float) -> None:
        """End it; by force after `grace` seconds."""
        ...


class CommandPart:
    """A command that says when it is ready (see `notify`).

    Args:
        name: What people call it.
        argv: The command.
        env: Its environment, without `NOTIFY_SOCKET`.
        log: Where its output goes.
        run_dir: Directory of running things.
        cwd: Working directory.
    """

    def __init__(
        self, name: str, argv: Sequence[str], *, env: Mapping[str, str], log: Path, run_dir: Path, cwd: Path
    ) -> None:
        self.name = name
        self.log = log
        self._argv = argv
        self._env = env
        self._run_dir = run_dir
        self._cwd = cwd
        self._process: CommandProcess | None = None

    @property
    def pid(self) -> int | None:
        """Its process while it runs."""
        return None if self._process is None or self._process.ending else self._process.pid

    async def start(self) -> None:
        """Start it and return when it said that it is ready; see `Part`."""
        self.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        ready = ReadySocket(self._run_dir / f"{self.name}.notify")
        env = {**self._env, VARIABLE: str(ready.path)}
        self._process = CommandProcess(self._argv, env=env, log=self.log, run_dir=self._run_dir, cwd=self._cwd)
        try:
            await self._process.start()
            await self._ready(self._process, ready)
        except BaseException:
            await self._process.stop(0)
            raise
        finally:
            ready.close()

    async def ended(self) -> str:
        """Wait until it has ended; returns how, in words."""
        assert self._process is not None, "start() comes first"
        return await self._process.exited()

    async def stop(self, grace: float) -> None:
        """End it and all that it started; by force after `grace` seconds."""
        if self._process is not None:
            await self._process.stop(grace)

    async def _ready(self, process: CommandProcess, ready: ReadySocket) -> None:
        waits = {asyncio.ensure_future(ready.ready.wait()), asyncio.ensure_future(process.exited())}
        try:
            await asyncio.wait(waits, timeout=READY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if ready.ready.is_set():
            return
        said = _reason(tail(self.log, 5))
        if process.ending:
            message = f"the {self.name} ended while it started ({process.ending}): {said or 'it wrote nothing'}"
            raise DispatchError(message, hint=f"its log is {self.log}")
        raise DispatchError(f"the {self.name} was not ready within {READY_SECONDS:g} s", hint=f"its log is {self.log}")


def _reason(lines: Sequence[str]) -> str:
    """Return the line of a log that says why: the last error of ours, else the last one."""
    ours = [line.removeprefix("error: ") for line in lines if line.lower().startswith("error: ")]
    return (ours or [*lines[-1:]] or [""])[-1]


class ServerPart:
    """The embedded Prefect server; after its first start it keeps its port.

    Args:
        make: Makes the server for a wanted port, and whether it must have exactly that one.
        port: Wanted port.
        log: Its log.
        on_progress: Called with what a start waits for.
    """

    name = "prefect"

    def __init__(
        self,
        make: Callable[[int, bool], EmbeddedServer],
        port: int,
        log: Path,
        *,
        on_progress: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.log = log
        self._make = make
        self._port = port
        self._on_progress = on_progress
        self._server: EmbeddedServer | None = None
        self.address: ServerAddress | None = None

    @property
    def pid(self) -> int | None:
        """Its process while it runs."""
        return self.address.pid if self.address and self._server and self._server.running else None

    async def start(self) -> None:
        """Start it and return when it answers; see `Part`."""
        known = self.address is not None
        self._server = self._make(self.address.port if self.address else self._port, known)
        self.address = await self._server.ready(on_progress=None if known else self._on_progress)

    async def ended(self) -> str:
        """Wait until it has ended; returns how, in words."""
        assert self._server is not None, "start() comes first"
        while self._server.running:
            await asyncio.sleep(_LOOK_SECONDS)
        return self._server.ending

    async def stop(self, grace: float) -> None:
        """End it; it has its own grace."""
        del grace
        if self._server is not None:
            await self._server.stop()
