"""A start may take long as long as the process moves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mloc_prefect.errors import DispatchError
from mloc_prefect.process.start_watch import StartWatch, family_cpu_seconds


class Site:
    """A process whose CPU time and clock the test sets."""

    def __init__(self, log: Path, pid: int | None = 7) -> None:
        self.now, self.used, self.said, self.log = 0.0, 0.0, list[str](), log
        self.watch = StartWatch(
            "the worker",
            lambda: pid,
            log,
            limit=60,
            report=self.said.append,
            clock=lambda: self.now,
            cpu=lambda _: self.used,
        )

    def wait(self, seconds: float, *, cpu: float = 0.0, text: str = "") -> None:
        """Let time pass, in which the process computes and writes."""
        self.now += seconds
        self.used += cpu
        if text:
            self.log.write_text(f"{self.log.read_text() if self.log.exists() else ''}{text}\n")
        self.watch.check()


def test_what_computes_or_writes_may_take_long(tmp_path: Path) -> None:
    site = Site(tmp_path / "log")
    for _ in range(4):
        site.wait(50, cpu=0.01)
        site.wait(50, text="migrating")
    assert site.said[-1] == (
        "waiting for the worker, which is starting: 400 s so far, 0.0 s of CPU used; its log ends with: migrating"
    )


def test_what_does_not_move_is_given_up_with_what_is_known(tmp_path: Path) -> None:
    site = Site(tmp_path / "log")
    site.wait(2, cpu=1.5)
    site.wait(59)
    assert "its log is empty" in site.said[-1]
    with pytest.raises(DispatchError) as caught:
        site.wait(2)
    assert caught.value.message == (
        "the worker shows no progress for 60 s while it starts (63 s so far, 1.5 s of CPU used; its log is empty)"
    )
    assert "MLOC_START_SECONDS" in (caught.value.hint or "")


def test_what_moves_for_ever_is_given_up_too(tmp_path: Path) -> None:
    site = Site(tmp_path / "log")
    for _ in range(59):
        site.wait(10, cpu=10)
    with pytest.raises(DispatchError, match="is still not ready after 600 s"):
        site.wait(10, cpu=10)


def test_a_process_that_is_not_known_yet_has_its_time(tmp_path: Path) -> None:
    site = Site(tmp_path / "log", pid=None)
    site.wait(59, cpu=5)
    with pytest.raises(DispatchError, match="no progress"):
        site.wait(3)


def test_the_time_of_descendants_counts() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    with subprocess.Popen([sys.executable, "-S", "-c", script], start_new_session=True) as parent:
        try:
            while family_cpu_seconds(parent.pid) < 0.1:
                assert parent.poll() is None
        finally:
            import os
            import signal

            os.killpg(parent.pid, signal.SIGKILL)
    assert family_cpu_seconds(parent.pid) == 0
