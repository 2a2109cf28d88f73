"""What a host is to those who use one, and the protocol of those who own them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class HostSpec:
    """What makes a host: tasks with equal specs may share one.

    Attributes:
        executor: `package.module:Class`.
        python: Interpreter of the executor's environment.
        options: Engine options, JSON-ready; given to the class.
        devices: Leased devices: `gpu:<index or uuid>`, and names that mean nothing to CUDA, such as `cpu`.
        env: Variables added to the environment of the host.
        share: Share of the memory of those devices that it may use, over 0 to 1.
    """

    executor: str
    python: str
    options: dict[str, Any] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    share: float = 1.0

    @property
    def key(self) -> str:
        """16 hexadecimal digits that stand for all of the above."""
        text = json.dumps(self.to_wire(), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def engine(self) -> str:
        """12 hexadecimal digits that stand for what is loaded, wherever that is: executor and options."""
        return engine_key(self.executor, self.options)

    def to_wire(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {**asdict(self), "python": str(self.python), "devices": list(self.devices)}

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> HostSpec:
        """Return the spec in `data`."""
        fields = {k: v for k, v in data.items() if k in cls.__dataclass_fields__}
        return cls(**{**fields, "devices": tuple(data.get("devices", ()))})


@dataclass(frozen=True, slots=True)
class Host:
    """A host that listens.

    Attributes:
        key: Name of the host for `discard` and `exit_of`.
        socket: Path of its unix socket.
        pid: Its process.
        log: File with its standard output and error.
    """

    key: str
    socket: str
    pid: int
    log: str


@dataclass(frozen=True, slots=True)
class HostExit:
    """How a host ended.

    Attributes:
        exit_code: Exit status, or None when a signal ended it.
        signal: Name of that signal, or None.
        oom: Whether the kernel's OOM killer struck at that time.
        log_tail: Last lines of its log.
    """

    exit_code: int | None
    signal: str | None
    oom: bool = False
    log_tail: str = ""


class HostProvider(Protocol):
    """Whoever owns hosts: `HostPool` in this process, the local runtime, or `MemoryHosts` in tests."""

    async def acquire(self, spec: HostSpec) -> Host:
        """Return a host of `spec` that listens, started if there is none; racing callers get the same one.

        Raises:
            DispatchError: It did not start; the message says why.
        """
        ...

    async def discard(self, key: str, *, pid: int | None = None) -> HostExit | None:
        """End the host `key` now, with all its descendants; return how it ended, None when there was none.

        Args:
            key: Key of the host.
            pid: Only if it is still this process: another caller may have replaced it since.
        """
        ...

    async def exit_of(self, key: str, *, pid: int | None = None) -> HostExit | None:
        """Return how the host `key` (with process `pid`) ended; None when it lives on. Waits a moment for the news."""
        ...


def engine_key(executor: str, options: Mapping[str, Any]) -> str:
    """Return 12 hexadecimal digits that stand for an executor with its options, on any machine."""
    text = json.dumps([executor, dict(options)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def loaded_mark(socket: Path) -> Path:
    """Return the file that is there while the host that listens at `socket` has its model loaded."""
    return socket.with_suffix(".loaded")


def log_tail(path: str | Path, *, lines: int = 40, limit: int = 8192) -> str:
    """Return the last lines of a host's log: at most `lines` lines and `limit` bytes, "" when there is none."""
    try:
        with Path(path).open("rb") as handle:
            end = handle.seek(0, 2)
            handle.seek(max(0, end - limit))
            text = handle.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
