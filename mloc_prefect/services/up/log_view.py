"""The log view of `mloc up`: it follows the log files of all parts.

Files, not pipes: a slow or closed terminal never holds up a part, and the logs are there when `mloc up` was killed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from typing import TYPE_CHECKING, TextIO

from mloc_prefect.diagnostics.printable import printable

if TYPE_CHECKING:
    from pathlib import Path

EVERY = 0.1
"""Seconds between two readings of the files."""

# Lines of Valkey that nobody needs: its notices, and a hint about a setting of the kernel.
_UNWANTED = re.compile(r"\d+:[A-Z] .{20,30} [*.-] |\d+:signal-handler|.*Memory overcommit must be enabled")
_CHAINED = ("During handling of the above", "The above exception was")  # what stands between two tracebacks
_READ_BYTES = 256 << 10  # bytes of one file shown in one go
_COLOURS = (36, 35, 32, 34, 33, 96)  # of ANSI terminals: cyan, magenta, green, blue, yellow, bright cyan
_BOLD, _WARN = 1, 33


@dataclass(slots=True)
class _Followed:
    name: str
    path: Path
    colour: int
    position: int
    folds: bool
    rest: bytes = b""
    folded: bool = False

    def shows(self, line: str) -> bool:
        """Return whether a line is shown: of folded tracebacks only the error at their end is."""
        if not self.folds:
            return True
        if line.startswith("Traceback "):
            self.folded = True
        elif self.folded and line.strip() and not line.startswith((" ", *_CHAINED)):
            self.folded = False
            return True
        return not self.folded and bool(line.strip()) and not line.startswith(_CHAINED)


class LogView:
    """Lines of all parts on one terminal, each with the name of its part.

    Args:
        stream: Where to print.
        copy: File that gets the same lines without colours (MLOC's `LOG_FILE`), or None.
        max_bytes: Size at which the copy is rotated; 0 = never.
        backups: Rotated copies that are kept.
    """

    def __init__(self, stream: TextIO, *, copy: Path | None = None, max_bytes: int = 5 << 20, backups: int = 5) -> None:
        self._stream = stream
        self._colours = stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
        self._followed: list[_Followed] = []
        self._width = 9
        self._closed = False
        self._copy: logging.Handler | None = None
        if copy is not None:
            copy.parent.mkdir(parents=True, exist_ok=True)
            self._copy = RotatingFileHandler(copy, maxBytes=max_bytes, backupCount=backups, encoding="utf-8")

    def follow(self, name: str, path: Path, *, folds: bool = False) -> None:
        """Show what is written to `path` from now on; with `folds` without tracebacks, which are in the file."""
        colour = _COLOURS[len(self._followed) % len(_COLOURS)]
        self._followed.append(_Followed(name, path, colour, _size(path), folds))
        self._width = max(self._width, len(name))

    def show(self, text: str) -> None:
        """Print lines of our own."""
        for line in text.splitlines() or [""]:
            self._print("mloc", line, _BOLD)

    def warn(self, text: str) -> None:
        """Print lines of our own that people should read."""
        for line in text.splitlines():
            self._print("mloc", line, _WARN)

    async def run(self) -> None:
        """Follow the files until cancelled; lines written by then are still shown."""
        try:
            while True:
                self.poll()
                await asyncio.sleep(EVERY)
        finally:
            self.poll()

    def poll(self) -> None:
        """Show the new lines."""
        for followed in self._followed:
            for line in _new_lines(followed):
                if followed.shows(line) and not _UNWANTED.match(line):
                    self._print(followed.name, line, followed.colour)

    def close(self) -> None:
        """Close the copy."""
        if self._copy is not None:
            self._copy.close()

    def _print(self, name: str, line: str, colour: int) -> None:
        line = printable(line)  # names in specs reach the logs of all parts
        if self._copy is not None:
            self._copy.handle(logging.makeLogRecord({"msg": f"{name:<{self._width}} | {line}"}))
        if self._closed:
            return
        prefix = f"{name:<{self._width}} │ "
        try:
            self._stream.write(f"\x1b[{colour}m{prefix}\x1b[0m{line}\n" if self._colours else f"{prefix}{line}\n")
            self._stream.flush()
        except (OSError, ValueError):  # the terminal is closed; the parts continue, and the files have everything
            self._closed = True


def _new_lines(followed: _Followed) -> list[str]:
    size = _size(followed.path)
    if size < followed.position:  # cut or replaced: continue at its end
        followed.position, followed.rest = size, b""
    if size == followed.position:
        return []
    try:
        with followed.path.open("rb") as file:
            file.seek(followed.position)
            data = file.read(_READ_BYTES)
    except OSError:  # it was just set aside, or cannot be read now: the next look reads it, and other logs go on
        return []
    followed.position += len(data)
    *lines, followed.rest = (followed.rest + data).split(b"\n")
    if len(followed.rest) > _READ_BYTES:
        lines, followed.rest = [*lines, followed.rest], b""
    return [line.decode("utf-8", "replace").rstrip("\r") for line in lines]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
