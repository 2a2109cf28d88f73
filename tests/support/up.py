"""A real `mloc up` for tests, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_prefect.process.exposure import EVERYWHERE
from mloc_prefect.process.free_port import listen
from mloc_prefect.services.up.up_state import UpState, running
from tests.support.patience import FACT_SECONDS, START_SECONDS, STOP_SECONDS
from tests.support.server import prepare_home

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MLOC = [sys.executable, "-m", "mloc_prefect.cli"]


def free_ports(wanted: int) -> int:
    """Return the first port from `wanted` on (in steps of 5) that is free, with the four ports after it."""
    for base in range(wanted, wanted + 400, 5):
        sockets = []
        try:
            sockets = [listen(EVERYWHERE, port) for port in range(base, base + 5)]
        except OSError:
            continue
        finally:
            for sock in sockets:
                sock.close()
        return base
    raise AssertionError("no free ports")


class Up:
    """One `mloc up` on the state directory `home`, with its own ports.

    Args:
        home: `MLOC_HOME`.
        port: Wanted port of the endpoint; those of Prefect and Valkey follow.
        variables: Further environment variables.

    Attributes:
        command: How `mloc` is called.
        folder: Working directory of its processes; None = that of the tests.
    """

    def __init__(self, home: Path, port: int, **variables: str) -> None:
        self.command: Sequence[str | Path] = MLOC
        self.folder: Path | None = None
        self.home = home
        self.port = port = free_ports(port)
        self.log = home.parent / f"{home.name}.log"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLOC_"))}
        self.env = kept | {
            "MLOC_HOME": str(home),
            "MLOC_INVENTORY": '{"cpus": 4, "memory": "16GiB", "gpus": []}',
            "MLOC_SERVER_PORT": str(port + 1),
            "MLOC_REDIS_PORT": str(port + 2),
            "PORT": str(port),
            "MLOC_RETRY_BASE_DELAY": "0.1",
            "PREFECT_HOME": str(home / "prefect-client"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            **variables,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.start_seconds = START_SECONDS

    @property
    def url(self) -> str:
        """URL of the endpoint."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def login(self) -> tuple[str, str]:
        """User and password of its Prefect server."""
        user, _, password = (self.home / "secrets" / "prefect-auth").read_text().strip().partition(":")
        return user, password

    @property
    def prefect_env(self) -> dict[str, str]:
        """Variables with which clients reach its Prefect server."""
        return {"PREFECT_API_URL": self.state().api_url, "PREFECT_API_AUTH_STRING": ":".join(self.login)}

    def start(self, *options: str) -> UpState:
        """Start it and wait until everything is up."""
        if not (self.home / "prefect" / "prefect.db").exists():
            prepare_home(self.home)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, "up", *options],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
                start_new_session=True,
            )
        return self.wait_ready()

    def wait_ready(self) -> UpState:
        """Wait until all parts are up."""
        deadline = time.monotonic() + self.start_seconds
        while (state := running(self.home)) is None or not state.ready:
            assert self.process is None or self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
        return state

    def state(self) -> UpState:
        """Return its state file."""
        state = running(self.home)
        assert state is not None
        return state

    def wait_shown(self, text: str) -> str:
        """Return what it printed, once `text` is in it; the last lines follow the state file."""
        deadline = time.monotonic() + START_SECONDS
        while text not in (shown := self.log.read_text()):
            assert time.monotonic() < deadline, shown
            time.sleep(0.05)
        return shown

    def end(self, number: int = signal.SIGINT, seconds: float = STOP_SECONDS) -> int:
        """Send a signal and return the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(seconds)
        self.process = None
        return code

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run `mloc` with arguments in the same environment."""
        return subprocess.run(
            [*self.command, *arguments],
            cwd=self.folder,
            env=self.env | more,
            capture_output=True,
            text=True,
            timeout=FACT_SECONDS,
            check=False,
        )

    def left_over(self) -> list[str]:
        """Return the command lines of processes that belong to this home, by environment or arguments."""
        mark = os.fsencode(self.home)
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            command = _read(process / "cmdline")
            if command and process.name != str(os.getpid()) and mark in command + _read(process / "environ"):
                found.append(f"{process.name} {command.replace(bytes(1), b' ').decode(errors='replace')}")
        return found

    def wait_nothing_left(self, seconds: float = STOP_SECONDS) -> None:
        """Wait until no process of this home exists."""
        deadline = time.monotonic() + seconds
        while left := self.left_over():
            assert time.monotonic() < deadline, left
            time.sleep(0.05)


@contextmanager
def running_up(home: Path, port: int, *options: str, **variables: str) -> Iterator[Up]:
    """Run a `mloc up` until the block ends."""
    up = Up(home, port, **variables)
    try:
        up.start(*options)
        yield up
    finally:
        kill(up)


def kill(up: Up) -> None:
    """Kill all its processes, also when a script started them."""
    if up.process is None and (state := running(up.home)) is not None:
        os.kill(state.pid, signal.SIGKILL)
    if up.process is not None and up.process.poll() is None:
        up.process.kill()
        up.process.wait()
    up.wait_nothing_left()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
