"""Output that leads nowhere: a closed stream is no reason not to run, and a full disk is one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MLOC = [sys.executable, "-m", "mloc_prefect.cli"]


def shell(line: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {"MLOC_HOME": str(home), "PATH": "/usr/bin:/bin"}
    command = ["/bin/sh", "-c", f'"$0" -m mloc_prefect.cli {line}', sys.executable]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_command_runs_without_its_streams(closed: str, tmp_path: Path) -> None:
    done = shell(f"version {closed}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line_and_no_report(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("a: 1\n" * 9)
    ended = shell(f"validate {tmp_path}/spec.yaml >/dev/full", tmp_path)
    assert "please report it" not in ended.stderr
    done = shell("templates echo >/dev/full", tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: cannot write to standard output: No space left on device\n"
