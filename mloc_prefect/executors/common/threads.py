"""CPU threads of an executor: as many as it may use, without busy waiting."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")


def wait_passively() -> None:
    """Let idle threads of the numeric libraries sleep instead of spin; call it before torch is first imported.

    Decoding consists of thousands of short parallel regions with a barrier after each. By default OpenMP spins at the
    barrier, which is a little faster on an idle machine. But as soon as another process (the Prefect server, a second
    host) holds one of the cores, every barrier waits for a time slice, and generation slows down many times over. A
    variable that the user has set wins.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def usable_cores() -> int:
    """Return how many threads to compute with: `OMP_NUM_THREADS`, else CPU affinity limited by the cgroup quota."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    if named.isdigit() and int(named) > 0:
        return int(named)
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _CGROUP_CPU.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))
