"""What is known of a running `mloc up`: one for each `MLOC_HOME`, its addresses, and the ports to take again."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mloc_prefect.errors import DispatchError
from mloc_prefect.execution.dirs import run_dir

if TYPE_CHECKING:
    from pathlib import Path

_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class UpState:
    """A running `mloc up`.

    Attributes:
        pid: Its process.
        url: The endpoint, for clients on this machine.
        api_url: Value for `PREFECT_API_URL`.
        ui_url: Prefect's web pages.
        redis: Redis in words, without its password.
        ready: Whether all parts were up once.
        parts: Name of a part -> its process, or None while it is down.
        token_file: Where the endpoint's token lies if `mloc up` made it, else None.
        auth_file: Where the Prefect API's password lies if it has one of ours, else None.
    """

    pid: int
    url: str
    api_url: str
    ui_url: str
    redis: str
    ready: bool = False
    parts: dict[str, int | None] = field(default_factory=dict)
    token_file: str | None = None
    auth_file: str | None = None


class UpFiles:
    """Lock and state file of one `MLOC_HOME`.

    Args:
        home: `MLOC_HOME`.
    """

    def __init__(self, home: Path) -> None:
        directory = run_dir(home)
        self._lock_file = directory / "up.lock"
        self._state_file = directory / "up.json"
        self._ports_file = home / "ports.json"
        self._lock: int | None = None

    def claim(self) -> bool:
        """Take the lock for the life of this process; False when another one has it."""
        descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        if not _lock(descriptor):
            os.close(descriptor)
            return False
        os.truncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self._lock = descriptor
        self._state_file.unlink(missing_ok=True)
        return True

    def release(self) -> None:
        """Give the lock back."""
        self._state_file.unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def holder(self) -> int | None:
        """Return the process that has the lock, or None."""
        try:
            with self._lock_file.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            return int(self._lock_file.read_text() or 0) or None
        return None

    def write(self, state: UpState) -> None:
        """Publish what others may know."""
        _write(self._state_file, asdict(state))

    def read(self) -> UpState | None:
        """Return the state of the `mloc up` that runs now, or None; one that only starts has none yet."""
        if self.holder() is None:
            return None
        with suppress(OSError, ValueError, TypeError):
            return UpState(**json.loads(self._state_file.read_text()))
        return None

    def ports(self) -> dict[str, int]:
        """Return the ports that the last `mloc up` here had, by part; links and clients expect them again."""
        with suppress(OSError, ValueError):
            found = json.loads(self._ports_file.read_text())
            if isinstance(found, dict):
                return {str(name): port for name, port in found.items() if isinstance(port, int)}
        return {}

    def keep_ports(self, ports: dict[str, int]) -> None:
        """Note the ports for the next time."""
        _write(self._ports_file, ports)


def running(home: Path) -> UpState | None:
    """Return the `mloc up` of `home`, or None. Makes no directory."""
    if not home.is_dir():
        return None
    return UpFiles(home).read()


def stop_up(home: Path, *, seconds: float = 40.0) -> list[str]:
    """End the `mloc up` of `home` and wait until it is gone; returns what was ended, one phrase.

    Raises:
        DispatchError: It does not end.
    """
    if not home.is_dir():
        return []
    files = UpFiles(home)
    holder = files.holder()
    if holder is None:
        return []
    with suppress(ProcessLookupError):
        os.kill(holder, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while files.holder() == holder:
        if time.monotonic() > deadline:
            raise DispatchError(
                f"`mloc up` (process {holder}) does not end", hint=f"kill -9 {holder} ends it with all parts"
            )
        time.sleep(_LOOK_SECONDS)
    return [f"`mloc up` with all its parts (process {holder})"]


def refuse_second(files: UpFiles, home: Path) -> DispatchError:
    """Return the error for a second `mloc up` on one `MLOC_HOME`."""
    state = files.read()
    where = f", {state.url}" if state else ""
    return DispatchError(
        f"`mloc up` runs already for {home} (process {files.holder()}{where})",
        hint="end it with `mloc down`, or set MLOC_HOME to another directory for a second one",
    )


def _lock(descriptor: int) -> bool:
    for pause in (0.05, 0.1, 0.2, 0.0):  # `holder` has it for a moment when somebody looks
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(pause)
        else:
            return True
    return False


def _write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(value, file)
    new.replace(path)
