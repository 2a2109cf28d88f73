"""Lock and state file of a running `mloc up`: one for each `MLOC_HOME`, its addresses, and the ports to take again."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from mloc_prefect.errors import DispatchError
from mloc_prefect.process.lock_file import LockFile
from mloc_prefect.process.run_dir import run_dir
from mloc_prefect.process.state_file import StateFile

if TYPE_CHECKING:
    from pathlib import Path

_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class UpState:
    """A running `mloc up`.

    Attributes:
        pid: Its process.
        url: The endpoint, for clients on this machine.
        api_url: Value for `PREFECT_API_URL`.
        ui_url: Prefect's web pages.
        redis: Redis as text, without its password.
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
        self._lock = LockFile(directory / "up.lock")
        self._state = StateFile(directory / "up.json")
        self._ports = StateFile(home / "ports.json")

    def claim(self) -> bool:
        """Take the lock for the life of this process; False when another one has it."""
        if not self._lock.acquire():
            return False
        self._state.remove()
        return True

    def release(self) -> None:
        """Give the lock back."""
        self._state.remove()
        self._lock.release()

    def holder(self) -> int | None:
        """Return the process that has the lock, or None."""
        return self._lock.holder()

    def write(self, state: UpState) -> None:
        """Publish the state for other commands."""
        self._state.write(asdict(state))

    def read(self) -> UpState | None:
        """Return the state of the `mloc up` that runs now, or None; one that only starts has none yet."""
        if self.holder() is None or (state := self._state.read()) is None:
            return None
        with suppress(TypeError):  # of another version
            return UpState(**state)
        return None

    def ports(self) -> dict[str, int]:
        """Return the ports that the last `mloc up` here had, by part; links and clients expect them again."""
        return {name: port for name, port in (self._ports.read() or {}).items() if isinstance(port, int)}

    def keep_ports(self, ports: dict[str, int]) -> None:
        """Store the ports for the next time."""
        self._ports.write(ports)


def running(home: Path) -> UpState | None:
    """Return the `mloc up` of `home`, or None. Makes no directory."""
    if not home.is_dir():
        return None
    return UpFiles(home).read()


def stop_up(home: Path, *, seconds: float = 40.0) -> list[str]:
    """End the `mloc up` of `home` and wait for its end; return what was ended, one phrase.

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
        time.sleep(_POLL_SECONDS)
    return [f"`mloc up` with all its parts (process {holder})"]


def refuse_second(files: UpFiles, home: Path) -> DispatchError:
    """Return the error for a second `mloc up` on one `MLOC_HOME`."""
    state = files.read()
    where = f", {state.url}" if state else ""
    return DispatchError(
        f"`mloc up` runs already for {home} (process {files.holder()}{where})",
        hint="end it with `mloc down`, or set MLOC_HOME to another directory for a second one",
    )
