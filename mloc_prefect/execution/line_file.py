"""Files of JSON objects, one on each line, that attempts append to and later attempts read. Standard library only.

A line is written at once, with a single write, so that it survives a crash; one that a crash or a full disk cut short
is left out by readers, and does not spoil the next one.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class LineFile:
    """Appends lines to a file, which is made with the first of them. For one thread at a time.

    Args:
        path: The file.
        mode: Its permissions.
    """

    def __init__(self, path: Path, mode: int = 0o644) -> None:
        self.path = path
        self._mode = mode
        self._fd: int | None = None
        self._torn = False

    def append(self, line: bytes) -> int:
        """Append a line, and return its offset.

        Args:
            line: The line, with its end.

        Raises:
            OSError: It could not be written completely (disk full).
        """
        if self._fd is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, self._mode)
            size = os.fstat(self._fd).st_size
            self._torn = size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"
        if self._torn:  # the last line was cut short: end it, so that the new one stands on its own
            os.write(self._fd, b"\n")
            self._torn = False
        offset = os.fstat(self._fd).st_size
        written = os.write(self._fd, line)
        if written != len(line):
            self._torn = True
            raise OSError(
                f"only {written} of {len(line)} bytes of a line were written to {self.path}; is the disk full?"
            )
        return offset

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def objects_of(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield offset and object of every complete line; an object that was cut short is not valid JSON."""
    try:
        handle = path.open("rb")
    except FileNotFoundError:
        return
    with handle:
        offset = 0
        for line in handle:
            start, offset = offset, offset + len(line)
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield start, row


def files_of_attempts(task_dir: Path, name: str) -> list[Path]:
    """Return the files of a name in all attempts of a task, oldest attempt first."""
    found = (task_dir / "attempts").glob(f"*/{name}")
    return sorted(found, key=lambda path: ([int(n) for n in re.findall(r"\d+", path.parent.name)], path.parent.name))
