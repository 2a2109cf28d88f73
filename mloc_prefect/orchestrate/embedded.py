"""The embedded Prefect server as its owner sees it: a child process that ends with the owner. Standard library only."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mloc_prefect.errors import DispatchError
from mloc_prefect.orchestrate.server_main import Private, ServerOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

START_SECONDS = 120.0
_STOP_SECONDS = 5.0
_POLL_SECONDS = 0.03
_LOG_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A server that answers.

    Attributes:
        pid: Its process.
        port: Its port.
        started: When it was ready, seconds since the epoch.
        host: Its address for clients on this machine.
    """

    pid: int
    port: int
    started: float
    host: str = "127.0.0.1"

    @property
    def ui_url(self) -> str:
        """Address of the web pages."""
        return f"http://{self.host}:{self.port}"

    @property
    def api_url(self) -> str:
        """Value for `PREFECT_API_URL`."""
        return f"{self.ui_url}/api"


class EmbeddedServer:
    """Prefect's own server on SQLite below one state directory.

    Args:
        home: `MLOC_HOME`; the database lies in its `prefect/`, the log in `logs/prefect-server.log`, and
            `prefect/server.json` (mode 0600) names the process, port and start time while it runs.
        port: Wanted port; another free one is taken when it is in use.
        host: Address to listen on.
        exact: Take that port or fail.
        private: Redis for its events and jobs, and the password of its API; without it both live in memory and the
            API is open.
    """

    def __init__(
        self, home: Path, port: int, *, host: str = "127.0.0.1", exact: bool = False, private: Private | None = None
    ) -> None:
        self.home = home / "prefect"
        self.log = home / "logs" / "prefect-server.log"
        self._port = port
        self._host = host
        self._exact = exact
        self._private = private or Private()
        self._state = self.home / "server.json"
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None

    @property
    def running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def ending(self) -> str:
        """How the process ended, in words; empty while it runs."""
        code = None if self._process is None else self._process.poll()
        if code is None:
            return ""
        return f"exit status {code}" if code >= 0 else signal_name(-code)

    def launch(self) -> None:
        """Start the process; it is of use only once `poll` or `ready` gives its address."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._state.unlink(missing_ok=True)
        _rotate(self.log)
        self._let_go()
        read_end, self._lifeline = os.pipe()
        options = ServerOptions(
            home=str(self.home),
            port=self._port,
            lifeline=read_end,
            state_file=str(self._state),
            host=self._host,
            exact=self._exact,
        )
        try:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "mloc_prefect.orchestrate.server_main", options.to_argument()],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=(read_end,),
                    start_new_session=True,
                )
        finally:
            os.close(read_end)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as private:  # if it has ended already, `poll` tells why
            private.write(self._private.to_input())

    def poll(self) -> ServerAddress | None:
        """Return the address once the server answers, None before.

        Raises:
            DispatchError: The process has ended.
        """
        assert self._process is not None, "launch() comes first"
        with suppress(FileNotFoundError):
            return ServerAddress(**json.loads(self._state.read_text()))
        code = self._process.poll()
        if code is not None:
            raise DispatchError(
                f"the embedded Prefect server ended while it started (exit status {code}): {_last_line(self.log)}",
                hint=f"its log is {self.log}; set PREFECT_API_URL to use a server of your own",
            )
        return None

    async def ready(
        self, *, timeout: float = START_SECONDS, on_progress: Callable[[str], None] | None = None
    ) -> ServerAddress:
        """Start the server if needed and wait until it answers.

        Args:
            timeout: Seconds until giving up.
            on_progress: Called with what is being waited for.

        Raises:
            DispatchError: It ended, or did not answer in time.
        """
        if not self.running:
            if on_progress is not None:
                first = " (the first start makes its database)" if not (self.home / "migrated").exists() else ""
                on_progress(f"starting the embedded Prefect server{first}")
            self.launch()
        deadline = asyncio.get_running_loop().time() + timeout
        while (address := self.poll()) is None:
            if asyncio.get_running_loop().time() > deadline:
                await self.stop()
                raise DispatchError(
                    f"the embedded Prefect server did not answer within {timeout:g} s", hint=f"its log is {self.log}"
                )
            await asyncio.sleep(_POLL_SECONDS)
        return address

    async def stop(self) -> None:
        """End the server and wait until it is gone."""
        await asyncio.to_thread(self.stop_now)

    def stop_now(self) -> None:
        """Do what `stop` does, blocking."""
        self._let_go()
        if self._process is None:
            return
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        self._state.unlink(missing_ok=True)

    def _let_go(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None


def signal_name(number: int) -> str:
    """Return `SIGKILL` for 9."""
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def _rotate(log: Path) -> None:
    """Keep one older log, so that neither grows for ever."""
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1].strip() if lines else "it wrote nothing"
