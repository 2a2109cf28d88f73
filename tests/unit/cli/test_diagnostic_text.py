"""Diagnostics on a terminal and in a pipe."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mloc_prefect.cli.display.diagnostic_text import excerpt, show_diagnostics
from mloc_prefect.diagnostics.diagnostic import Diagnostic

WRONG = Diagnostic(
    "a.yaml", 2, 10, "error", "bad-number", "top_p must be at most 1", "spec.inference.top_p", "1.5", "use 0.95"
)


def shown(diagnostic: Diagnostic, text: str, *, terminal: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, no_color=True, width=60, highlight=False, soft_wrap=True)
    show_diagnostics(console, [diagnostic], {"a.yaml": text})
    return stream.getvalue()


def plain(text: str) -> str:
    import re

    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_in_a_pipe_the_text_is_that_of_the_diagnostic():
    assert shown(WRONG, "inference:\n  top_p: 1.5\n", terminal=False) == f"{WRONG}\n"


def test_on_a_terminal_the_first_line_is_the_same_and_the_caret_marks_the_value():
    lines = plain(shown(WRONG, "inference:\n  top_p: 1.5 # high\n", terminal=True)).splitlines()
    assert lines[0] == str(WRONG).splitlines()[0]
    assert lines[1] == "    2 │   top_p: 1.5 # high"
    assert lines[2] == "      │          ^~~"
    assert lines[2].index("^") == lines[1].index("1.5")
    assert lines[3:] == str(WRONG).splitlines()[1:]


def test_long_first_lines_are_never_wrapped_and_markup_is_not_read():
    long = Diagnostic("a.yaml", 1, 1, "warning", "x", "[bold]" + "word " * 40)
    assert plain(shown(long, "a: 1", terminal=True)).splitlines()[0] == str(long)


@pytest.mark.parametrize("line", [0, 3, 99])
def test_a_place_outside_the_text_has_no_excerpt(line):
    away = Diagnostic("a.yaml", line, 1, "error", "x", "gone")
    assert plain(shown(away, "a: 1\nb: 2", terminal=True)) == f"{away}\n"


@pytest.mark.parametrize("breaker", ["\n", "\r\n", "\r", "\u2028", "\x85"])
def test_lines_are_counted_as_yaml_counts_them(breaker):
    text = plain(shown(WRONG, f"first{breaker}  key: here{breaker}last", terminal=True))
    assert "key: here" in text
    assert "first" not in text


@pytest.mark.parametrize(
    ("line", "column", "caret"),
    [
        ("a: 1", 1, "^"),
        ("a: hello there", 4, "   ^~~~~"),
        ("a: 'hello there'", 4, "   ^~~~~~~~~~~~~"),
        ("a: ${x.y z}", 4, "   ^~~~~~~~"),
        ("\ta: b", 5, "\t   ^"),
        ("模: 型", 4, "    ^~"),
        ("a:", 3, "  ^"),
    ],
)
def test_carets_stand_under_the_token_whatever_the_width_of_the_characters(line, column, caret):
    assert excerpt(line, column, 80) == (line, caret)


def test_a_long_line_is_cut_around_the_column():
    line = "x" * 300 + " HERE " + "y" * 300
    shown_line, caret = excerpt(line, 302, 60)
    assert len(shown_line) <= 60
    assert shown_line[caret.index("^") :].startswith("HERE")
    assert shown_line.startswith("…")
    assert shown_line.endswith("…")
