"""The small commands and the help."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from mloc_prefect import __version__
from mloc_prefect.artifacts.garbage import GarbageItem, GcReport
from mloc_prefect.cli.commands.check import parameters
from mloc_prefect.cli.commands.gc import report_lines
from mloc_prefect.cli.commands.ps import status_lines
from mloc_prefect.cli.commands.templates import available, summary
from mloc_prefect.cli.display.run_progress import RunProgress
from mloc_prefect.cli.display.units import age_text, parse_age, parse_size, size_text
from mloc_prefect.cli.run_session import result_object
from mloc_prefect.errors import MlocError
from tests.support.command_line import mloc

COMMANDS = ("validate", "plan", "run", "schema", "templates", "doctor", "ps", "down", "gc", "version")


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
    with pytest.raises(MlocError, match="is not a duration"):
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
    item = GarbageItem(Path("/r/x"), "attempt", 2048, 90000.0, "older than the limit")
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
