"""`mloc doctor` on task types: which can run here, with which engine, and what to do where none can."""

from __future__ import annotations

import json
import sys

import pytest

from mloc_prefect.cli.commands import doctor, doctor_task_types
from mloc_prefect.execution.environments import inspection
from mloc_prefect.flow import preflight
from mloc_prefect.settings import get_settings
from tests.support.command_line import mloc


def test_doctor_tells_the_command_that_brings_what_is_missing(monkeypatch):
    monkeypatch.setattr(doctor, "_prefect", lambda _settings: iter(()))
    there = preflight._there
    monkeypatch.setattr(preflight, "_there", lambda name: name != "torch" and there(name))
    types = {f.name: f for f in doctor.examine(get_settings()) if f.topic == "task type"}
    assert types["inference"].text == "torch not installed"
    assert types["inference"].fix == "pip install 'mloc-prefect[transformers]'"
    assert types["echo"].level == "ok"


def test_doctor_reports_every_task_type_and_what_to_do(monkeypatch):
    monkeypatch.setattr(doctor, "_prefect", lambda _settings: iter(()))
    report = json.loads(mloc("doctor", "--json").stdout)
    types = {f["name"]: f for f in report["findings"] if f["topic"] == "task type"}
    assert types["echo"]["level"] == "ok"
    assert {"inference", "sft", "rag", "agent"} <= set(types)
    smollm2 = next(f for f in report["findings"] if f["topic"] == "model")
    assert smollm2["fix"] == "mloc models prepare smollm2"
    assert report["ok"] is True


@pytest.mark.parametrize(
    ("built", "inventory", "engine", "why"),
    [
        ([], '{"cpus": 2}', "transformers", "no environment vllm-cpu is built"),
        (["vllm"], '{"cpus": 2}', "transformers", "no GPU for vllm here"),
        (["vllm"], '{"cpus": 2, "gpus": [{"type": "a100"}]}', "vllm", "the stage asks for a GPU"),
        (["vllm-cpu"], '{"cpus": 2}', "vllm-cpu", "the spec asks for vLLM"),
    ],
)
def test_doctor_names_the_engine_that_would_run_a_type(monkeypatch, tmp_path, built, inventory, engine, why):
    monkeypatch.setattr(doctor_task_types, "_broken", lambda *_args: None)
    monkeypatch.setattr(preflight, "missing_modules", lambda *_args: [])
    monkeypatch.setenv("MLOC_INVENTORY", inventory)
    monkeypatch.setenv("MLOC_PYTHON", json.dumps(dict.fromkeys(built, "/my/python")))
    found = {f.name: f for f in doctor._task_types(get_settings())}
    assert found["vllm"].facts["engine"] == engine
    assert found["vllm"].text.startswith(f"ready with {engine} (")
    assert why in found["vllm"].text
    assert found["default"].text.startswith("ready with transformers: ")
    assert found["ppo"].facts["engine"] == "ppo"
    assert found["ppo"].text.startswith("ready with ppo, in the main environment: ")
    assert found["echo"].text.startswith("ready with echo: ")


def test_doctor_calls_no_type_ready_whose_engine_is_broken(monkeypatch):
    monkeypatch.setenv("MLOC_INVENTORY", '{"cpus": 2}')
    monkeypatch.setenv("MLOC_PYTHON", json.dumps({"train": sys.executable, "ppo": sys.executable}))
    monkeypatch.setattr(inspection, "packages_of", lambda _python: {"torch": {"version": "2.13.0", "torch": None}})
    found = {f.name: f for f in doctor._task_types(get_settings())}
    assert {found[name].level for name in ("sft", "ppo")} == {"missing"}
    assert found["sft"].text == "train: trl is not installed in it"
    assert found["sft"].fix == "mloc env create train --force"


def test_doctor_fails_on_what_is_broken(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_prefect", lambda _settings: iter(()))
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("RESULTS_DIR", str(blocked / "results"))
    monkeypatch.setenv("MLOC_PYTHON", '{"train": "/no/such/python"}')
    monkeypatch.setenv("MLOC_MIRRORS", str(tmp_path / "absent.yaml"))
    result = mloc("doctor")
    assert result.exit_code == 1
    assert f"{blocked} is not a directory" in result.stdout
    assert "/no/such/python is not an executable" in result.stdout
    assert "absent.yaml" in result.stdout


def test_doctor_says_once_that_the_inventory_is_wrong_and_goes_on(monkeypatch):
    monkeypatch.setattr(doctor, "_prefect", lambda _settings: iter(()))
    monkeypatch.setenv("MLOC_INVENTORY", "nonsense")
    found = doctor.examine(get_settings())
    assert [f.topic for f in found if "MLOC_INVENTORY" in f.text] == ["machine"]
    assert {"vllm", "vllm-cpu", "train"} <= {f.name for f in found if f.topic == "environment"}
