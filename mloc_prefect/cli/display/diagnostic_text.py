"""Diagnostics in compiler style: the message, and on a terminal the source line with a caret."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.console import Console

    from mloc_prefect.diagnostics.diagnostic import Diagnostic

_BREAKS = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # line breaks of YAML 1.1
_TOKEN = re.compile(r"""\$\{[^}]*\}?|"(?:[^"\\]|\\.)*"?|'[^']*'?|[^\s,:\[\]{}#]+""")
_STYLES = {"error": "bold red", "warning": "bold yellow"}


def show_diagnostics(
    console: Console, diagnostics: Iterable[Diagnostic], sources: Mapping[str, str] | None = None
) -> None:
    """Print `diagnostics`; `sources` maps file names to their text, for excerpts on a terminal."""
    lines = {name: _BREAKS.split(text) for name, text in (sources or {}).items()}
    for diagnostic in diagnostics:
        if console.is_terminal:
            console.print(_styled(diagnostic, lines.get(diagnostic.file, []), console.width))
        else:
            console.print(Text(str(diagnostic)))


def excerpt(line: str, column: int, width: int) -> tuple[str, str]:
    """Return the part of `line` around `column` that fits `width` cells, and a line that marks the token: `^~~~`.

    Args:
        line: The source line.
        column: Column of the token, in characters, from 1.
        width: Cells of the terminal.
    """
    start = max(0, column - 1)
    token = _TOKEN.match(line, start)
    length = max(1, (token.end() if token else start + 1) - start)
    if cell_len(line) > width:
        first = max(0, start - width // 3)
        line = ("…" if first else "") + line[first : first + width - 2] + "…"
        start -= first - (1 if first else 0)
        length = max(1, min(length, width - 2 - start))
    pad = "".join("\t" if c == "\t" else " " * cell_len(c) for c in line[:start])
    marked = cell_len(line[start : start + length]) or 1
    return line, pad + "^" + "~" * (marked - 1)


def _styled(diagnostic: Diagnostic, lines: list[str], width: int) -> Text:
    style = _STYLES[diagnostic.severity]
    head, *rest = str(diagnostic).split("\n")
    label = f"{diagnostic.severity}[{diagnostic.code}]:"
    place, _, message = head.partition(label)
    text = Text.assemble((place, "bold"), (label, style), message)
    if 0 < diagnostic.line <= len(lines):
        number = f"{diagnostic.line:>5} "
        shown, caret = excerpt(lines[diagnostic.line - 1], diagnostic.column, max(20, width - len(number) - 3))
        text.append(f"\n{number}", "blue").append("│ ", "blue").append(shown)
        text.append(f"\n{' ' * len(number)}", "blue").append("│ ", "blue").append(caret, style)
    for line in rest:
        text.append("\n").append(line, "cyan" if line.lstrip().startswith("help:") else "dim")
    return text
