"""Marks of hosts: which processes belong to hosts that run."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from mloc_prefect.process.marks import HOST_TITLE, MARK, new_mark, processes_of_live_hosts

if TYPE_CHECKING:
    from pathlib import Path

_WAIT = "import sys; print(1, flush=True); sys.stdin.read()"


def started(mark: str, *arguments: str) -> subprocess.Popen[str]:
    """Return a process with a mark that waits."""
    child = subprocess.Popen(
        [sys.executable, "-c", _WAIT, *arguments],
        env={**os.environ, MARK: mark},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    child.stdout.readline()  # only now its environment can be read for sure
    return child


def test_processes_count_as_long_as_their_host_runs(tmp_path: Path) -> None:
    mark, other = new_mark(tmp_path), new_mark(tmp_path / "other")
    host, engine, elsewhere = started(mark, HOST_TITLE), started(mark), started(other, HOST_TITLE)
    try:
        assert processes_of_live_hosts(tmp_path) == {host.pid: mark, engine.pid: mark}
        host.communicate()
        assert processes_of_live_hosts(tmp_path) == {}, "an engine that outlives its host is left out"
    finally:
        for child in (host, engine, elsewhere):
            child.kill()
            child.wait()
