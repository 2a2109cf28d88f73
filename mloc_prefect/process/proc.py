"""Reads facts about single processes from `/proc`: whether one lives, which one it is, its environment.

Standard library only, since hosts and the local runtime import it: they must start fast, and hosts run in environments
that have nothing else of ours. `psutil` would not do here anyway: leases store start times in the kernel's clock ticks.
"""

from __future__ import annotations

import os
from pathlib import Path

from mloc_prefect.process.supervisor import read_process


def is_alive(pid: int) -> bool:
    """Return whether `pid` runs; a zombie does not."""
    return start_time(pid) is not None


def start_time(pid: int) -> str | None:
    """Return when `pid` started, in clock ticks since boot; None when it has ended.

    A zombie has ended: where process 1 does not reap, killed orphans stay in the table indefinitely.
    """
    process = read_process(pid)
    return process.start if process is not None and process.alive else None


def start_mark(pid: int) -> str | None:
    """Return what tells `pid` from a later process of the same number (boot and start time); None when it has ended."""
    start = start_time(pid)
    return None if start is None else f"{boot_mark()}-{start}"


def boot_mark() -> str:
    """Return 8 hexadecimal digits of this machine's boot, "" where there are none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return ""


def pid_namespace() -> int:
    """Return the number of our pid namespace: in another one the same pid is another process.

    Raises:
        OSError: The system has no pid namespaces.
    """
    return os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116  # the link's target is not a path


def environment_value(pid: int, name: str) -> str:
    """Return a variable of the environment that `pid` was started with; "" when it is not there or not readable."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    prefix = f"{name}=".encode()
    return next((v[len(prefix) :].decode("ascii", "replace") for v in variables if v.startswith(prefix)), "")
