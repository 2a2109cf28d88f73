"""The one log view of `mloc up`."""

from __future__ import annotations

import io

from mloc_prefect.services.up.log_view import LogView


def test_the_view_shows_new_lines_of_each_part_with_its_name(tmp_path):
    log, copy = tmp_path / "a.log", tmp_path / "all.log"
    log.write_text("old\n")
    out = io.StringIO()
    view = LogView(out, copy=copy)
    view.follow("endpoint", log)
    view.show("hello")
    with log.open("a") as file:
        file.write("one\ntw")
    view.poll()
    with log.open("a") as file:
        file.write("o\n77:M 24 Nov 2026 00:01:26.045 * Ready to accept connections tcp\n")
        file.write("77:M 24 Nov 2026 00:01:26.045 # Out of memory\n")
    view.poll()
    log.write_text("cut\n")
    view.poll()
    expected = ["mloc      │ hello", "endpoint  │ one", "endpoint  │ two"]
    shown = [*expected, "endpoint  │ 77:M 24 Nov 2026 00:01:26.045 # Out of memory"]
    assert out.getvalue().splitlines() == shown
    view.close()
    assert [line.replace("|", "│") for line in copy.read_text().splitlines()] == shown


def test_control_characters_of_a_part_are_shown_not_obeyed(tmp_path):
    log, copy = tmp_path / "a.log", tmp_path / "all.log"
    out = io.StringIO()
    view = LogView(out, copy=copy)
    view.follow("worker", log)
    log.write_text("run 'a\x1b]0;title\x07\x9b2J\rb' begins\n")
    view.poll()
    view.close()
    shown = "run 'a\\x1b]0;title\\x07\\x9b2J\\rb' begins\n"
    assert out.getvalue() == f"worker    │ {shown}"
    assert copy.read_text() == f"worker    | {shown}"


def test_tracebacks_of_a_part_can_be_folded_to_their_errors(tmp_path):
    log = tmp_path / "a.log"
    out = io.StringIO()
    view = LogView(out)
    view.follow("prefect", log, folds=True)
    view.follow("bridge", log)
    log.write_text(
        "12:00:00 | WARNING | Redis is unavailable\n"
        "Traceback (most recent call last):\n"
        '  File "a.py", line 1, in a\n'
        "    a()\n"
        "OSError: first\n"
        "\n"
        "During handling of the above exception, another exception occurred:\n"
        "\n"
        "Traceback (most recent call last):\n"
        '  File "b.py", line 1, in b\n'
        "OSError: second\n"
        "12:00:01 | WARNING | retrying\n  in a moment\n"
    )
    view.poll()
    lines = [line.split("│ ") for line in out.getvalue().splitlines()]
    shown = [text for name, text in lines if name.startswith("prefect")]
    assert shown == [
        "12:00:00 | WARNING | Redis is unavailable",
        "OSError: first",
        "OSError: second",
        "12:00:01 | WARNING | retrying",
        "  in a moment",
    ]
    assert sum(name.startswith("bridge") for name, _ in lines) == 13, "all of it"


def test_a_closed_terminal_does_not_matter(tmp_path):
    class Closed(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    view = LogView(Closed(), copy=tmp_path / "copy")
    view.show("one")
    view.show("two")
    view.close()
    assert (tmp_path / "copy").read_text().count("\n") == 2
