"""Consoles of the command: plain text in, no markup, no wrapping, colours only on a terminal."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping


def stdout() -> Console:
    """Return a console on the standard output of this moment."""
    return _console(sys.stdout)


def stderr() -> Console:
    """Return a console on the standard error of this moment."""
    return _console(sys.stderr)


def is_interactive(stream: TextIO) -> bool:
    """Return whether `stream` is a terminal on which a display may move the cursor."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


def labelled(label: str, message: str, style: str) -> Text:
    """Return `label: message` with a coloured label."""
    return Text.assemble((f"{label}:", style), f" {message}")


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on one line of stdout; ASCII, so that no locale can break it."""
    sys.stdout.write(json.dumps(value, separators=(", ", ": ")) + "\n")
    sys.stdout.flush()


def _console(stream: TextIO) -> Console:
    return Console(file=stream, markup=False, highlight=False, emoji=False, soft_wrap=True)
