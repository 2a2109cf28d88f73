"""Consoles of the command: no markup, no wrapping, colours only on a terminal, control characters as escapes.

What is printed comes from specs, logs and answers of others: every line for people passes `say` or one of the consoles.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, RenderHook
from rich.control import Control
from rich.measure import Measurement
from rich.segment import Segment
from rich.text import Text

from mloc_prefect.diagnostics.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import ConsoleOptions, ConsoleRenderable, RenderableType


def stdout() -> Console:
    """Return a console on the current `sys.stdout`."""
    return _console(sys.stdout)


def stderr() -> Console:
    """Return a console on the current `sys.stderr`."""
    return _console(sys.stderr)


def console_on(stream: TextIO, *, wrap: bool = True) -> Console:
    """Return a console on a stream."""
    console = Console(file=stream, markup=False, highlight=False, emoji=False, soft_wrap=not wrap)
    console.push_render_hook(_EscapingHook())
    return console


def say(text: object = "", *, flush: bool = False) -> None:
    """Print text for people on the current `sys.stdout`."""
    sys.stdout.write(printable(str(text)) + "\n")
    if flush:
        sys.stdout.flush()


class Escaped:
    """A renderable whose control characters are shown as escapes; rich obeys them."""

    def __init__(self, shown: RenderableType) -> None:
        self._shown = shown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        """Yield the segments of the renderable."""
        for segment in console.render(self._shown, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Return the width of the renderable."""
        return Measurement.get(console, options, self._shown)


class _EscapingHook(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [shown if isinstance(shown, Control) else Escaped(shown) for shown in renderables]


def is_interactive(stream: TextIO) -> bool:
    """Return whether `stream` is a terminal on which the cursor can be moved."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


def labelled(label: str, message: str, style: str) -> Text:
    """Return `label: message` with a coloured label."""
    return Text.assemble((f"{label}:", style), f" {message}")


def print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print a JSON value on one line of stdout, as ASCII, which works in every locale."""
    sys.stdout.write(json.dumps(value, separators=(", ", ": ")) + "\n")
    sys.stdout.flush()


def _console(stream: TextIO) -> Console:
    return console_on(stream, wrap=False)
