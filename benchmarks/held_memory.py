"""Fills the page cache, for benchmarks that write gigabytes of files.

A virtual machine may give memory that is free back to its host (free page reporting of virtio-balloon). The first write
to each page then costs a fault in the host: measured, 2 GiB into the page cache take 5 s instead of 0.5 s, which hides
whatever is being measured. So the page cache is filled beforehand with what can go at once, and every arm gets pages
that are there.
"""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

_FEW = 256 << 20  # bytes; for less than that the faults do not show
_LEFT_FREE = 768 << 20  # bytes; about what the kernel keeps free by itself
_BLOCK = bytearray(4 << 20)


def hold_memory(folder: Path, size: int) -> None:
    """Fill free memory with the pages of a sparse file in `folder`, which stays there until the folder goes.

    Args:
        folder: On any disk; the file takes no room there.
        size: Bytes that will be written.
    """
    meminfo = Path("/proc/meminfo")
    if size < _FEW or not meminfo.exists():
        return
    (free,) = [int(line.split()[1]) << 10 for line in meminfo.read_text().splitlines() if line.startswith("MemFree:")]
    if free <= _LEFT_FREE:
        return
    with (folder / f"filler-{uuid4().hex[:8]}").open("w+b", buffering=0) as file:
        file.truncate(free - _LEFT_FREE)
        while file.readinto(_BLOCK):
            pass
