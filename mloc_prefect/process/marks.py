"""Marks in the environment of processes that name their owner, so that what a dead owner left can be ended."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from mloc_prefect.process.proc import environment_value, pid_namespace, start_time
from mloc_prefect.process.supervisor import MARK, kill_family, process_table

HOST_TITLE = "mloc-host"
"""Argument by which the command line of a host can be known."""


def new_mark(run_dir: Path) -> str:
    """Return a new mark for a host of this process: `<run dir>.<pid namespace>.<pid>.<start time>.<random>`."""
    pid = os.getpid()
    return f"{_prefix(run_dir)}.{pid}.{start_time(pid)}.{secrets.token_hex(6)}"


def kill_left_over(run_dir: Path) -> int:
    """End processes of hosts of `run_dir` whose owner is dead; return how many marks were found.

    A host ends with its owner. This is for what can remain when owner and supervisor were killed at the same moment.
    Only marks of our own pid namespace count: in another one the owner's pid says nothing.
    """
    marks = {mark for pid in process_table() if (mark := _mark_of(pid)).startswith(_prefix(run_dir) + ".")}
    left = [mark for mark in marks if not _owner_lives(mark)]
    for mark in left:
        kill_family(mark, seconds=5.0)
    return len(left)


def is_host_of(pid: int, run_dir: Path) -> bool:
    """Return whether `pid` is a host of `run_dir`, or a process that one started; False when it cannot be read."""
    return _mark_of(pid).startswith(_prefix(run_dir) + ".")


def processes_of_live_hosts(run_dir: Path) -> dict[int, str]:
    """Return the processes of the hosts of `run_dir` that run, each with its host's mark.

    A process that outlives its host, until the supervisor ends it, is left out.
    """
    found = {pid: mark for pid in process_table() if (mark := _mark_of(pid)).startswith(_prefix(run_dir) + ".")}
    alive = {mark for pid, mark in found.items() if _is_host_process(pid)}
    return {pid: mark for pid, mark in found.items() if mark in alive}


def _is_host_process(pid: int) -> bool:
    """Return whether `pid` is the process of a host itself: not its supervisor, nor a process that it started."""
    try:
        return HOST_TITLE.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _prefix(run_dir: Path) -> str:
    digest = hashlib.sha256(os.fsencode(run_dir.resolve())).hexdigest()[:12]
    return f"{digest}.{pid_namespace()}"


def _owner_lives(mark: str) -> bool:
    pid, start = mark.split(".")[2:4]
    return start_time(int(pid)) == start


def _mark_of(pid: int) -> str:
    return environment_value(pid, MARK)
