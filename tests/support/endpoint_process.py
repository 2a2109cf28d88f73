"""The HTTP endpoint as a real process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.patience import STOP_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

_STARTED = "mloc endpoint listening on "


@dataclass
class EndpointProcess:
    """A running endpoint.

    Attributes:
        process: The process.
        url: Its address.
    """

    process: subprocess.Popen[str]
    url: str

    def kill(self) -> None:
        """Kill the process, as a crash would."""
        self.process.kill()
        self.process.wait()

    def peak_bytes(self) -> int:
        """Return its peak memory."""
        return _memory(self.process.pid, "VmHWM")

    def now_bytes(self) -> int:
        """Return its current memory."""
        return _memory(self.process.pid, "VmRSS")


def launch(home: Path, redis_url: str, **variables: str) -> EndpointProcess:
    """Start an endpoint on a free port and wait until it listens; `variables` are added to its environment."""
    process = popen(home, REDIS_URL=redis_url, PORT=variables.pop("PORT", "0"), **variables)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith(_STARTED), (line, process.stderr.read() if process.stderr else "")
    return EndpointProcess(process, line.removeprefix(_STARTED).strip())


def popen(home: Path, **variables: str) -> subprocess.Popen[str]:
    """Start an endpoint without waiting for it."""
    environment = {**os.environ, "MLOC_HOME": str(home), **variables}
    log = (home / "endpoint.log").open("a")
    command = [sys.executable, "-m", "mloc_prefect.server"]
    with log:
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)


@contextmanager
def endpoint(home: Path, redis_url: str, **variables: str) -> Iterator[EndpointProcess]:
    """Run an endpoint until the block ends."""
    running = launch(home, redis_url, **variables)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGTERM)
            try:
                running.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                running.kill()


def _memory(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
