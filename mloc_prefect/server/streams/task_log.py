"""The log of a task from any position, as text or followed as events. `flow.stage_log` writes it."""

from __future__ import annotations

import asyncio
import os
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from mloc_prefect.process.regular_file import open_inside
from mloc_prefect.server.files.file_response import file_pieces
from mloc_prefect.server.streams import sse

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

_BLOCK = 64 * 1024
_MOST_OF_TAIL = 16 << 20
_POLL_SECONDS = 0.25
_STATUS_POLLS = 4  # the record is read at every fourth poll of the file


def log_file(directory: Path) -> Path:
    """Return the path of a task's log."""
    return directory / "logs" / "stage.log"


def is_there(path: Path) -> bool:
    """Return whether there is a log that belongs to its task."""
    with _opened(path) as file:
        return file is not None


def start_of_tail(path: Path, lines: int) -> int:
    """Return the offset at which the last `lines` lines start, at most 16 MiB before the end; 0 without a file."""
    with _opened(path) as file:
        if file is None:
            return 0
        position = file.seek(0, os.SEEK_END)
        data = b""
        while position > 0 and data.count(b"\n") <= lines and len(data) < _MOST_OF_TAIL:
            size = min(max(_BLOCK, len(data)), position)
            position = file.seek(position - size)
            data = file.read(size) + data
    cut = len(data) - 1 if data.endswith(b"\n") else len(data)
    for _ in range(lines):
        cut = data.rfind(b"\n", 0, cut)
        if cut < 0:
            return position
    return position + cut + 1


async def pieces(path: Path, start: int) -> AsyncIterator[bytes]:
    """Yield the log from an offset to its current end; nothing if there is no log."""
    file = await asyncio.to_thread(open_inside, _task_dir(path), path)
    if file is None:
        return
    async for piece in file_pieces(file, start, os.fstat(file.fileno()).st_size - start):
        yield piece


async def follow(
    path: Path,
    start: int,
    status: Callable[[], Awaitable[tuple[str, bool]]],
    *,
    poll_seconds: float = _POLL_SECONDS,
    status_polls: int = _STATUS_POLLS,
) -> AsyncGenerator[bytes]:
    """Yield every line as an event whose id is the offset after it, and an event `end` when the task has ended.

    Args:
        path: The log; it may not exist yet.
        start: Offset of the first line.
        status: Returns the status of the task and whether that is final.
        poll_seconds: Seconds between two polls of the log.
        status_polls: Polls of the log between two reads of the status.
    """
    yield b": following\n\n"
    polls, shown, ended = 0, "", False
    while True:
        block = await asyncio.to_thread(_read, path, start, _BLOCK)
        complete = block[: block.rfind(b"\n") + 1] or (block if len(block) == _BLOCK else b"")
        for line in complete.splitlines(keepends=True):
            start += len(line)
            yield sse.event(line.rstrip(b"\r\n").decode("utf-8", "replace"), id_=str(start))
        if complete:
            continue
        if ended:
            if block:
                yield sse.event(block.decode("utf-8", "replace"), id_=str(start + len(block)))
            yield sse.event({"status": shown}, name="end")
            return
        if polls % status_polls == 0:
            shown, ended = await status()
        polls += 1
        if not ended:
            await asyncio.sleep(poll_seconds)


def _read(path: Path, start: int, size: int) -> bytes:
    with _opened(path) as file:
        if file is None:
            return b""
        file.seek(start)
        return file.read(size)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes] | None]:
    """Open a log; None if there is none, or if it leads out of the directory of its task."""
    file = open_inside(_task_dir(path), path)
    if file is None:
        yield None
        return
    with file:
        yield file


def _task_dir(path: Path) -> Path:
    return path.parents[1]
