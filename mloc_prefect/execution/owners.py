"""Marks that name the owner of a host, so that what a dead owner left can be found and ended."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from mloc_prefect.execution.supervisor import MARK, kill_family, process_table


def new_mark(run_dir: Path) -> str:
    """Return a new mark for a host of this process: `<run dir>.<pid namespace>.<pid>.<start time>.<random>`."""
    pid = os.getpid()
    return f"{_prefix(run_dir)}.{pid}.{_start_time(pid)}.{secrets.token_hex(6)}"


def kill_left_over(run_dir: Path) -> int:
    """End processes of hosts of `run_dir` whose owner is dead; return how many marks were found.

    A host ends with its owner by itself. This is for what can remain when owner and supervisor were killed at the same
    moment. Only marks of our own pid namespace count: in another one the owner's pid says nothing.
    """
    marks = {mark for pid in process_table() if (mark := _mark_of(pid)).startswith(_prefix(run_dir) + ".")}
    left = [mark for mark in marks if not _owner_lives(mark)]
    for mark in left:
        kill_family(mark, seconds=5.0)
    return len(left)


def is_host_of(pid: int, run_dir: Path) -> bool:
    """Return whether `pid` is a host of `run_dir`, or a process that one started; False when it cannot be read."""
    return _mark_of(pid).startswith(_prefix(run_dir) + ".")


def _prefix(run_dir: Path) -> str:
    digest = hashlib.sha256(os.fsencode(run_dir.resolve())).hexdigest()[:12]
    return f"{digest}.{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116  # the link's target is not a path


def _owner_lives(mark: str) -> bool:
    pid, start = mark.split(".")[2:4]
    return _start_time(int(pid)) == start


def _start_time(pid: int) -> str | None:
    """Return when `pid` started, in clock ticks since boot; None when it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else fields[19]


def _mark_of(pid: int) -> str:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    name = f"{MARK}=".encode()
    return next((v[len(name) :].decode("ascii", "replace") for v in variables if v.startswith(name)), "")
