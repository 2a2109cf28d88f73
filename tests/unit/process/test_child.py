"""Lifelines, logs and texts of child processes; processes themselves are in the integration tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mloc_prefect.process.child import Lifeline, exit_text, rotate_log
from mloc_prefect.process.supervised_child import CommandExit


def test_a_cut_lifeline_is_the_end_of_the_file() -> None:
    lifeline = Lifeline()
    os.set_blocking(lifeline.child_end, False)
    with pytest.raises(BlockingIOError):
        os.read(lifeline.child_end, 1)
    lifeline.cut()
    lifeline.cut()
    assert os.read(lifeline.child_end, 1) == b""
    lifeline.close_child_end()


def test_a_log_is_set_aside_once_it_is_large(tmp_path: Path) -> None:
    log, older = tmp_path / "server.log", tmp_path / "server.log.1"
    rotate_log(log, above=3)
    log.write_text("abc")
    rotate_log(log, above=3)
    assert not older.exists()
    log.write_text("abcd")
    rotate_log(log, above=3)
    assert older.read_text() == "abcd"
    assert not log.exists()
    log.touch()
    rotate_log(log)
    assert older.read_text() == ""


def test_endings_are_told_as_text() -> None:
    assert [exit_text(code) for code in (0, 3, -9, -40)] == ["exit status 0", "exit status 3", "SIGKILL", "signal 40"]
    assert str(CommandExit(3, None)) == "exit status 3"
    assert str(CommandExit(None, "SIGKILL")) == "SIGKILL"
    assert str(CommandExit(None, "SIGKILL", oom=True)) == "killed: the machine ran out of memory"
