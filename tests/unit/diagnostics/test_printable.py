"""Text for terminals: nothing in it is obeyed."""

from __future__ import annotations

from mloc_prefect.diagnostics.printable import printable, printable_line


def test_control_characters_are_shown() -> None:
    assert printable("a\x1b[2Jb\x9b31m\x7f\x00\r") == "a\\x1b[2Jb\\x9b31m\\x7f\\x00\\r"
    assert printable("\u202egpj.exe\u2066") == "\\u202egpj.exe\\u2066"


def test_text_stays_as_it_is() -> None:
    text = "é 漢字 💥\ttab\nline"
    assert printable(text) == text


def test_a_line_has_no_breaks() -> None:
    assert printable_line("a\nb\tc\u2028d") == "a\\nb\\tc\\u2028d"
