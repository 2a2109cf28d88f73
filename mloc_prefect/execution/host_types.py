"""Hosts as their users see them: specification, address, exit, and the protocol of host owners."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

HOST_CONFIG = "MLOC_HOST_CONFIG"
"""Variable with the configuration of a host process; command-line arguments would be visible to other users."""


@dataclass(frozen=True, slots=True)
class HostSpec:
    """Specification of a host; tasks with equal specifications may share one.

    Attributes:
        executor: `package.module:Class`.
        python: Interpreter of the executor environment.
        options: Engine options, JSON-ready; passed to the executor class.
        devices: Leased devices: `gpu:<index or uuid>`, and names that mean nothing to CUDA, such as `cpu`.
        env: Variables added to the environment of the host.
        share: Largest share of the memory of those devices that the host may use, above 0 and up to 1.
    """

    executor: str
    python: str
    options: dict[str, Any] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    share: float = 1.0

    @property
    def key(self) -> str:
        """Identity of the host: 16 hexadecimal digits of a hash of all fields."""
        text = json.dumps(self.to_wire(), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def engine(self) -> str:
        """Identity of the loaded engine on any machine: 12 hexadecimal digits of a hash of executor and options."""
        return engine_key(self.executor, self.options)

    def to_wire(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {**asdict(self), "python": str(self.python), "devices": list(self.devices)}

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> HostSpec:
        """Return the specification in `data`."""
        fields = {k: v for k, v in data.items() if k in cls.__dataclass_fields__}
        return cls(**{**fields, "devices": tuple(data.get("devices", ()))})


@dataclass(frozen=True, slots=True)
class Host:
    """A running host that accepts connections.

    Attributes:
        key: Name of the host for `discard` and `exit_of`.
        socket: Path of its Unix socket.
        pid: Its process id.
        log: File that receives its standard output and error.
    """

    key: str
    socket: str
    pid: int
    log: str


@dataclass(frozen=True, slots=True)
class HostExit:
    """How a host process ended.

    Attributes:
        exit_code: Exit status, or None when a signal ended the process.
        signal: Name of that signal, or None.
        oom: Whether the OOM killer of the kernel was active at that time.
        log_tail: Last lines of its log.
    """

    exit_code: int | None
    signal: str | None
    oom: bool = False
    log_tail: str = ""


class HostProvider(Protocol):
    """Owner of hosts: `HostPool` in this process, the local runtime, or `MemoryHosts` in tests."""

    async def acquire(self, spec: HostSpec) -> Host:
        """Return a running host for `spec`, started if there is none; concurrent callers get the same host.

        Raises:
            DispatchError: The host did not start; the message says why.
        """
        ...

    async def discard(self, key: str, *, pid: int | None = None) -> HostExit | None:
        """End the host `key` now, with all its descendants; return how it ended, or None when there was none.

        Args:
            key: Key of the host.
            pid: Act only while the host is this process: another caller may have replaced it.
        """
        ...

    async def exit_of(self, key: str, *, pid: int | None = None) -> HostExit | None:
        """Return how the host `key` (with process `pid`) ended, or None while it runs. Waits briefly for its exit."""
        ...


def engine_key(executor: str, options: Mapping[str, Any]) -> str:
    """Return the identity of an executor with its options: 12 hexadecimal digits, the same on any machine."""
    text = json.dumps([executor, dict(options)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def loaded_mark(socket: Path) -> Path:
    """Return the file that exists while the host that listens at `socket` has its model loaded."""
    return socket.with_suffix(".loaded")
