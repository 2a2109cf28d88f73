"""Going on with a run: the command that does it, and the runs that it refuses."""

from __future__ import annotations

from uuid import UUID, uuid5

import pytest

from mloc_prefect.cli.commands.run import run_id
from mloc_prefect.cli.commands.templates import available
from mloc_prefect.cli.resuming import command_again
from mloc_prefect.cli.run_session import RunSettings
from mloc_prefect.errors import ArtifactError, MlocError
from tests.support.command_line import mloc


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
        results_dir="out dir",
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

    monkeypatch.setattr("mloc_prefect.services.local_runtime.runtime_client.ensure_runtime", ensure_runtime)
    monkeypatch.setattr("mloc_prefect.cli.run_session.configured_api_url", lambda: None)
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
