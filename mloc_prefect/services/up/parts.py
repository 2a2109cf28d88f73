"""The parts of `mloc up`: each can be started, reports when it is ready and when it has ended, and can be stopped."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from mloc_prefect.errors import DispatchError
from mloc_prefect.process.log_tail import last_words
from mloc_prefect.process.notify import VARIABLE, ReadySocket
from mloc_prefect.process.start_watch import LIMIT_SECONDS, StartWatch
from mloc_prefect.process.supervised_child import SupervisedChild

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from mloc_prefect.prefect_ext.server.embedded import EmbeddedServer, ServerAddress

_CHECK_SECONDS = 1.0
_POLL_SECONDS = 0.2


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
            DispatchError: It ended or was not ready in time; nothing of it is left then.
        """
        ...

    async def ended(self) -> str:
        """Wait until it has ended; return how, as text."""
        ...

    async def stop(self, grace: float) -> None:
        """End it; by force after `grace` seconds."""
        ...


class CommandPart:
    """A command that reports when it is ready (see `process.notify`).

    Args:
        name: Name of the part, for people.
        argv: The command.
        env: Its environment, without `NOTIFY_SOCKET`.
        log: Where its output goes.
        run_dir: Directory of running things.
        cwd: Working directory.
        limit: Seconds without progress after which a start is given up.
        on_progress: Called with what a start waits for.

    Attributes:
        child: The command, from the first start on.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        run_dir: Path,
        cwd: Path,
        limit: float = LIMIT_SECONDS,
        on_progress: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.name = name
        self.log = log
        self._argv = argv
        self._env = env
        self._run_dir = run_dir
        self._cwd = cwd
        self._limit = limit
        self._on_progress = on_progress
        self.child: SupervisedChild | None = None

    @property
    def pid(self) -> int | None:
        """Its process while it runs."""
        return None if self.child is None or self.child.ending else self.child.pid

    async def start(self) -> None:
        """Start it and return when it has reported that it is ready; see `Part`."""
        self.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        ready = ReadySocket(self._run_dir / f"{self.name}.notify")
        env = {**self._env, VARIABLE: str(ready.path)}
        self.child = SupervisedChild(
            self._argv,
            title=f"the {self.name}",
            env=env,
            log=self.log,
            run_dir=self._run_dir,
            cwd=self._cwd,
            supervision={"oom_score": None},  # as likely a victim as its owner
        )
        try:
            self.child.start()
            await self._wait_ready(self.child, ready)
        except BaseException:
            await self.child.stop(0)
            raise
        finally:
            ready.close()

    async def is_ready(self, ready: ReadySocket) -> None:
        """Return when it is ready: when it has said so."""
        await ready.ready.wait()

    async def ended(self) -> str:
        """Wait until it has ended; return how, as text."""
        assert self.child is not None, "start() comes first"
        await self.child.wait_gone()
        return self.child.ending

    async def stop(self, grace: float) -> None:
        """End it and all that it started; by force after `grace` seconds."""
        if self.child is not None:
            await self.child.stop(grace)

    async def _wait_ready(self, child: SupervisedChild, ready: ReadySocket) -> None:
        served = asyncio.ensure_future(self.is_ready(ready))
        waits = {served, asyncio.ensure_future(child.wait_gone())}
        watch = StartWatch(f"the {self.name}", lambda: child.pid, self.log, limit=self._limit, report=self._on_progress)
        try:
            while not (await asyncio.wait(waits, timeout=_CHECK_SECONDS, return_when=asyncio.FIRST_COMPLETED))[0]:
                watch.check()
        finally:
            for wait in waits:
                wait.cancel()
        if served.done() and not served.cancelled():
            served.result()
            return
        why = _reason(last_words(self.log, 5))
        message = f"the {self.name} ended while it started ({child.ending}): {why or 'it wrote nothing'}"
        raise DispatchError(message, hint=f"its log is {self.log}")


def _reason(lines: Sequence[str]) -> str:
    """Return the line of a log that gives the reason: the last error of ours, else the last line."""
    ours = [line.removeprefix("error: ") for line in lines if line.lower().startswith("error: ")]
    return (ours or [*lines[-1:]] or [""])[-1]


class ServerPart:
    """The embedded Prefect server; after its first start it keeps its port.

    Args:
        make: Makes the server for a wanted port, and whether it must have exactly that one.
        port: Wanted port.
        log: Its log.
        limit: Seconds without progress after which a start is given up.
        on_progress: Called with what a start waits for.
    """

    name = "prefect"

    def __init__(
        self,
        make: Callable[[int, bool], EmbeddedServer],
        port: int,
        log: Path,
        *,
        limit: float = LIMIT_SECONDS,
        on_progress: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.log = log
        self._limit = limit
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
        is_restart = self.address is not None
        self._server = self._make(self.address.port if self.address else self._port, is_restart)
        self.address = await self._server.ready(
            limit=self._limit, on_progress=None if is_restart else self._on_progress
        )

    async def ended(self) -> str:
        """Wait until it has ended; return how, as text."""
        assert self._server is not None, "start() comes first"
        while self._server.running:
            await asyncio.sleep(_POLL_SECONDS)
        return self._server.ending

    async def stop(self, grace: float) -> None:
        """End it; it has its own grace."""
        del grace
        if self._server is not None:
            await self._server.stop()
