"""The embedded Prefect server as its owner sees it: a child process that ends with it. Standard library only."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.prefect_ext.server.main import Private, ServerOptions
from mloc_prefect.process.child import ServerChild
from mloc_prefect.process.proc import is_alive
from mloc_prefect.process.state_file import StateFile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_STOP_SECONDS = 5.0


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


class EmbeddedServer(ServerChild[ServerAddress]):
    """Prefect's own server on SQLite below one state directory.

    Args:
        home: `MLOC_HOME`; the database lies in its `prefect/`, the log in `logs/prefect-server.log`, and
            `prefect/server.json` (mode 0600) names the process, port and start time while it runs.
        port: Wanted port; another free one is taken when it is in use.
        host: Address to listen on.
        exact: Take that port or fail.
        names: Further host names under which it is reached.
        automations: Whether automations of users act on it.
        private: Redis for its events and jobs, and the password of its API; without it both live in memory and the
            API is open.
    """

    title = "embedded Prefect server"
    own_server = "PREFECT_API_URL"

    def __init__(
        self,
        home: Path,
        port: int,
        *,
        host: str = "127.0.0.1",
        exact: bool = False,
        names: Sequence[str] = (),
        automations: bool = False,
        private: Private | None = None,
    ) -> None:
        self.home = home / "prefect"
        state = StateFile(self.home / "server.json")
        super().__init__(log=home / "logs" / "prefect-server.log", state=state, grace=_STOP_SECONDS)
        self._port = port
        self._host = host
        self._exact = exact
        self._names = tuple(names)
        self._automations = automations
        self._private = private or Private()

    def launch(self) -> None:
        """Start the process; it is of use only once `poll` or `ready` gives its address."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._clear()
        self.spawn(self._command, stdin=self._private.to_input())

    def _command(self, lifeline: int) -> list[str]:
        options = ServerOptions(
            home=str(self.home),
            port=self._port,
            lifeline=lifeline,
            state_file=str(self._state.path),
            host=self._host,
            exact=self._exact,
            names=self._names,
            automations=self._automations,
        )
        return [sys.executable, "-P", "-m", "mloc_prefect.prefect_ext.server.main", options.to_argument()]

    def _address(self, state: dict[str, Any]) -> ServerAddress:
        return ServerAddress(**state)

    def _start_note(self) -> str:
        return "" if (self.home / "migrated").exists() else " (the first start makes its database)"


def running_at(home: Path) -> ServerAddress | None:
    """Return the server that runs below `home`, or None; another process may own it."""
    state = StateFile(home / "prefect" / "server.json").read()
    if state is None or not is_alive(int(state["pid"])):
        return None
    return ServerAddress(**state)
