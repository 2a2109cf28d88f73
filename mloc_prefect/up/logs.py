"""The one log view of `mloc up`: the parts write to files, and this follows them.

Files, not pipes: a slow or closed terminal never holds up a part, and the logs are there when `mloc up` was killed.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import suppress
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

EVERY = 0.1
"""Seconds between two looks at the files."""

_ONCE = 256 << 10  # bytes of one file shown in one go
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_red")


@dataclass(slots=True)
class _Followed:
    name: str
    path: Path
    colour: str
    position: int
    rest: bytes = b""


class LogView:
    """Lines of all parts on one terminal, each with the name of its part.

    Args:
        stream: Where to print.
        copy: File that gets the same lines without colours (MLOC's `LOG_FILE`), or None.
        max_bytes: Size at which the copy is rotated; 0 = never.
        backups: Rotated copies that are kept.
    """

    def __init__(self, stream: TextIO, *, copy: Path | None = None, max_bytes: int = 5 << 20, backups: int = 5) -> None:
        self._console = Console(file=stream, markup=False, highlight=False, emoji=False, soft_wrap=True)
        self._followed: list[_Followed] = []
        self._width = 9
        self._gone = False
        self._copy: logging.Handler | None = None
        if copy is not None:
            copy.parent.mkdir(parents=True, exist_ok=True)
            self._copy = RotatingFileHandler(copy, maxBytes=max_bytes, backupCount=backups, encoding="utf-8")

    def follow(self, name: str, path: Path) -> None:
        """Show what is written to `path` from now on."""
        colour = _COLOURS[len(self._followed) % len(_COLOURS)]
        self._followed.append(_Followed(name, path, colour, _size(path)))
        self._width = max(self._width, len(name))

    def say(self, text: str, *, style: str = "bold") -> None:
        """Print a line of our own."""
        for line in text.splitlines() or [""]:
            self._show("mloc", line, style, style)

    async def run(self) -> None:
        """Follow the files until cancelled; what was written by then is still shown."""
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
                self._show(followed.name, line, followed.colour, "")

    def close(self) -> None:
        """Close the copy."""
        if self._copy is not None:
            self._copy.close()

    def _show(self, name: str, line: str, colour: str, style: str) -> None:
        if self._copy is not None:
            self._copy.handle(logging.makeLogRecord({"msg": f"{name:<{self._width}} | {line}"}))
        if self._gone:
            return
        text = Text(f"{name:<{self._width}} │ ", colour)
        text.append(line, style)
        try:
            self._console.print(text)
        except (BrokenPipeError, OSError):  # nobody looks any more; the parts go on and the files have it all
            self._gone = True
            with suppress(OSError):
                sys.stdout.close()


def tail(path: Path, count: int = 1) -> Sequence[str]:
    """Return the last lines of a log that say something."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, _size(path) - _ONCE))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [line.strip() for line in lines if line.strip()][-count:]


def _new_lines(followed: _Followed) -> list[str]:
    size = _size(followed.path)
    if size < followed.position:  # cut or replaced: go on at its end
        followed.position, followed.rest = size, b""
    if size == followed.position:
        return []
    with followed.path.open("rb") as file:
        file.seek(followed.position)
        data = file.read(_ONCE)
    followed.position += len(data)
    *lines, followed.rest = (followed.rest + data).split(b"\n")
    if len(followed.rest) > _ONCE:
        lines, followed.rest = [*lines, followed.rest], b""
    return [line.decode("utf-8", "replace").rstrip("\r") for line in lines]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
