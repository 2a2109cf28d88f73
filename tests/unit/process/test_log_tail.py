"""The ends of logs."""

from __future__ import annotations

from pathlib import Path

from mloc_prefect.process.log_tail import last_line, last_words, log_tail


def test_log_tail(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"".join(b"line %d\n" % n for n in range(5000)) + b"\xff last")
    tail = log_tail(log)
    assert tail.splitlines()[-1] == "\ufffd last"
    assert len(tail.splitlines()) == 40
    assert log_tail(log, lines=2).splitlines()[0] == "line 4999"
    assert log_tail(tmp_path / "absent") == ""


def test_the_last_lines_of_a_log(tmp_path):
    log = tmp_path / "x"
    assert last_words(log) == []
    log.write_text("a\nb\n\n")
    assert last_words(log, 5) == ["a", "b"]
    assert last_line(log) == "b"
    assert last_line(tmp_path / "absent") == "it wrote nothing"
