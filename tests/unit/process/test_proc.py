"""What is read of `/proc`."""

from __future__ import annotations

import os

from mloc_prefect.process import supervisor
from mloc_prefect.process.proc import boot_mark, environment_value, is_alive, start_mark, start_time


def test_start_marks_tell_processes_apart() -> None:
    assert start_mark(os.getpid()) == start_mark(os.getpid())
    assert start_mark(2**22 + 1) is None
    assert start_mark(os.getpid()) == f"{boot_mark()}-{start_time(os.getpid())}"


def test_a_zombie_is_not_alive(monkeypatch) -> None:
    assert is_alive(os.getpid())
    zombie = supervisor.ProcessEntry(9, 1, 9, "Z", 1, "77")
    monkeypatch.setattr("mloc_prefect.process.proc.read_process", lambda _pid: zombie)
    assert not is_alive(9)
    assert start_time(9) is None


def test_the_environment_of_a_process() -> None:
    name, value = next((n, v) for n, v in os.environ.items() if v.isascii())
    assert environment_value(os.getpid(), name) == value
    assert environment_value(os.getpid(), "MLOC_NO_SUCH") == ""
    assert environment_value(2**22 + 1, name) == ""
