"""The log of a task: its end, all of it, or what comes. The file is `orchestrate.stagelog`'s."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from mloc_prefect.server import sse

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
    from pathlib import Path

_BLOCK = 64 * 1024
_MOST_OF_TAIL = 16 << 20
_LOOK_SECONDS = 0.25
_STATUS_LOOKS = 4  # the record is asked at every fourth look at the file


def log_file(directory: Path) -> Path:
    """Return the place of a task's log."""
    return directory / "logs" / "stage.log"


def start_of_tail(path: Path, lines: int) -> int:
    """Return the offset at which the last `lines` lines begin, at most 16 MiB before the end; 0 without a file."""
    try:
        with path.open("rb") as file:
            position = file.seek(0, os.SEEK_END)
            data = b""
            while position > 0 and data.count(b"\n") <= lines and len(data) < _MOST_OF_TAIL:
                size = min(max(_BLOCK, len(data)), position)
                position = file.seek(position - size)
                data = file.read(size) + data
    except FileNotFoundError:
        return 0
    cut = len(data) - 1 if data.endswith(b"\n") else len(data)
    for _ in range(lines):
        cut = data.rfind(b"\n", 0, cut)
        if cut < 0:
            return position
    return position + cut + 1


async def pieces(path: Path, start: int) -> AsyncIterator[bytes]:
    """Yield the log from an offset to where it ends now."""
    end = await asyncio.to_thread(_size, path)
    while start < end:
        piece = await asyncio.to_thread(_read, path, start, min(_BLOCK, end - start))
        if not piece:
            return
        start += len(piece)
        yield piece


async def follow(path: Path, start: int, status: Callable[[], Awaitable[tuple[str, bool]]]) -> AsyncGenerator[bytes]:
    """Yield every line as an event whose id is the offset behind it; an event `end` when the task is over.

    Args:
        path: The log; it may not be there yet.
        start: Offset of the first line.
        status: Returns the status of the task and whether that is final.
    """
    yield b": following\n\n"
    looks, shown, over = 0, "", False
    while True:
        block = await asyncio.to_thread(_read, path, start, _BLOCK)
        complete = block[: block.rfind(b"\n") + 1] or (block if len(block) == _BLOCK else b"")
        for line in complete.splitlines(keepends=True):
            start += len(line)
            yield sse.event(line.rstrip(b"\r\n").decode("utf-8", "replace"), id_=str(start))
        if complete:
            continue
        if over:
            if block:
                yield sse.event(block.decode("utf-8", "replace"), id_=str(start + len(block)))
            yield sse.event({"status": shown}, name="end")
            return
        if looks % _STATUS_LOOKS == 0:
            shown, over = await status()
        looks += 1
        if not over:
            await asyncio.sleep(_LOOK_SECONDS)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read(path: Path, start: int, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)
    except FileNotFoundError:
        return b""
