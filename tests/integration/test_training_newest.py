"""Trainings with the TRL of the environment `train`: the newest, which has no PPO."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mloc_prefect.tasks.training import trl_fields
from tests.support.newest_trl import ROOT, newest_trl_env
from tests.support.tiny_model import save_tiny_model

KINDS = ("sft", "lora_sft", "dpo", "grpo")
_TRAIN = """
import json, pathlib, sys
from importlib.metadata import version
from tests.support.training import PAIRS, SUMS, TrainingBench, losses

bench = TrainingBench(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
fast = {"max_steps": 4, "logging_steps": 1, "batch_size": 4, "learning_rate": 1e-2, "max_seq_length": 48}
sums = {"rows": SUMS, "prompt_column": "question", "response_column": "answer", "separator": " "}
found = {"trl": version("trl")}
for kind, data, more in (
    ("sft", sums, {}),
    ("lora_sft", sums, {"lora": {"r": 4, "target_modules": ["q_proj"]}}),
    ("dpo", {"rows": PAIRS}, {}),
    ("grpo", {"prompts": ["a", "b"]}, {"rewards": [{"name": "json"}], "generation": {"max_new_tokens": 4}}),
):
    training = fast | ({"num_generations": 2} if kind == "grpo" else {})
    found[kind] = losses(bench(kind, data, task=kind, training=training, **more))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return newest_trl_env()


def test_every_trainer_but_ppo_trains(environment: dict[str, str], tmp_path: Path) -> None:
    tiny = save_tiny_model(tmp_path / "model", window=64)
    done = asked(environment, "-c", _TRAIN, str(tmp_path / "runs"), str(tiny))
    found = json.loads(done.splitlines()[-1])
    assert found["trl"] == trl_fields.VERSIONS["trl"]
    assert {kind: len(found[kind]) for kind in KINDS} == dict.fromkeys(KINDS, 4)
    assert found["sft"][-1] < found["sft"][0]


def test_the_shipped_names_are_those_of_this_trl(environment: dict[str, str]) -> None:
    script = "import runpy; print(runpy.run_path('docs/trl_fields.py')['text'](), end='')"
    assert asked(environment, "-c", script) == Path(trl_fields.__file__).read_text(), "run docs/trl_fields.py with it"


def asked(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
