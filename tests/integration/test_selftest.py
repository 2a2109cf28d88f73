"""`mloc selftest --quick` as a user runs it: with vLLM on the CPU, transformers, and a training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

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
