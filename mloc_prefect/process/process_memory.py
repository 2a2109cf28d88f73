"""Memory of processes and of the machine, in bytes. Standard library only."""

from __future__ import annotations

import os
from pathlib import Path

from mloc_prefect.process.supervisor import process_table


def resident_bytes(pid: int | None) -> int | None:
    """Return the memory that a process and its descendants have in use, None when it has ended.

    Engines on several devices have a process for each. What those share with others is not counted again.
    """
    own = _pages(pid)
    if pid is None or own is None:
        return None
    parts = (_pages(child) or (0, 0) for child in family(pid) - {pid})
    return (own[0] + sum(resident - shared for resident, shared in parts)) * os.sysconf("SC_PAGE_SIZE")


def held_bytes(pid: int | None) -> int | None:
    """Return the memory that a process and its descendants hold, None when it has ended.

    Unlike `resident_bytes`, memory that they share among themselves counts, once. So do parts of libraries. Where the
    kernel does not tell the parts, each counts what it has in memory.
    """
    if _held(pid) is None:
        return None
    return sum(_held(member) or 0 for member in family(pid))


def family(pid: int | None) -> set[int]:
    """Return a process and its descendants."""
    if pid is None:
        return set()
    table = process_table()
    found, grew = {pid}, True
    while grew:
        more = {p.pid for p in table.values() if p.parent in found} - found
        found |= more
        grew = bool(more)
    return found


def _pages(pid: int | None) -> tuple[int, int] | None:
    """Return the pages of a process that are in memory, and how many of those are shared."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
        return int(fields[1]), int(fields[2])
    except (OSError, ValueError, IndexError):
        return None


def _held(pid: int | None) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) << 10
    except (OSError, ValueError, IndexError, StopIteration):
        pages = _pages(pid)
        return None if pages is None else pages[0] * os.sysconf("SC_PAGE_SIZE")


def available_bytes() -> int | None:
    """Return the memory that a new process can have without swapping, None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return int(kib) << 10 if kib else None
