"""Settings that cannot be read: what was set, its value and what is wrong, for commands and `mloc doctor`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mloc_prefect.cli.app import app
from mloc_prefect.cli.commands import doctor
from mloc_prefect.errors import SettingsError
from mloc_prefect.hardware.inventory import read_inventory
from mloc_prefect.settings import get_settings


def mloc(*arguments):
    return CliRunner().invoke(app, arguments)


def config(text: str) -> Path:
    """Write the config file; returns where it is."""
    file = Path(os.environ["MLOC_HOME"], "config.toml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode("latin-1"))
    return file


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("RETRY_BASE_DELAY_SEC", "x", "setting RETRY_BASE_DELAY_SEC: must be a valid number, found 'x'"),
        ("PORT", "abc", "setting PORT: must be a valid integer, found 'abc'"),
        ("MLOC_PORT", "70000", "setting MLOC_PORT: must be less than or equal to 65535, found '70000'"),
        ("MLOC_DISPATCH", "both", "setting MLOC_DISPATCH: must be 'auto', 'ours' or 'original', found 'both'"),
        (
            "MLOC_PYTHON",
            "x",
            "setting MLOC_PYTHON: not JSON (Expecting value: line 1 column 1 (char 0)), found 'x'",
        ),
        ("MLOC_PYTHON", '{"vllm": 1}', "setting MLOC_PYTHON (vllm): must be a path, found 1"),
    ],
)
def test_the_variable_that_was_set_is_named_with_its_value(monkeypatch, name, value, text):
    monkeypatch.setenv(name, value)
    result = mloc("models", "list")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0] == f"error: {text}"
    if name == "MLOC_PYTHON":
        assert '{"vllm": "/envs/vllm/bin/python"}' in result.stderr, "the form is shown"


def test_the_first_variable_is_the_one_that_counts(monkeypatch):
    monkeypatch.setenv("PORT", "8001")
    monkeypatch.setenv("HOST_APP_PORT", "x")
    config('port = "y"')
    assert get_settings().port == 8001
    monkeypatch.delenv("PORT")
    with pytest.raises(SettingsError, match=r"^setting HOST_APP_PORT: .*'x'"):
        get_settings()


def test_one_results_root_for_endpoint_and_workers(monkeypatch, tmp_path):
    monkeypatch.setenv("ORCHESTRATOR_RESULTS_DIR", str(tmp_path / "host"))
    assert get_settings().results_root == tmp_path / "host"
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "both"))
    assert get_settings().results_root == tmp_path / "both"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port = \n", "FILE:1:8: Invalid value"),
        ('\nport = "', "FILE: Unterminated string (at end of document)"),
        ('port = "abc"', "setting port in FILE: must be a valid integer, found 'abc'"),
        ("[python]\nvllm = 3", "setting python in FILE (vllm): must be a path, found 3"),
        ("a = '\xe9'", "FILE is not UTF-8: invalid continuation byte at byte 5"),
        ("port = 0.5\nmax_retries = -1", None),
    ],
)
def test_a_fault_of_the_config_file_is_told_with_its_place_and_doctor_goes_on(text, message):
    file = config(text)
    result = mloc("models", "list")
    assert result.exit_code == 2
    if message is None:  # all faults at once
        assert result.stderr.count(f" in {file}: ") == 2
        return
    message = message.replace("FILE", str(file))
    assert result.stderr.splitlines()[0] == f"error: {message}"
    report = mloc("doctor", "--json")
    findings = json.loads(report.stdout)["findings"]
    assert report.exit_code == 1
    assert [f["text"] for f in findings if f["level"] == "bad"] == [message]
    assert {"python", "package"} <= {f["topic"] for f in findings}


def test_secrets_are_not_shown(monkeypatch):
    monkeypatch.setenv("TOKEN", "not a setting")
    config("token = 12345")
    with pytest.raises(SettingsError) as caught:
        get_settings()
    assert "setting token in " in caught.value.message
    assert "12345" not in str(caught.value)


def test_an_argument_is_named_as_such():
    with pytest.raises(SettingsError, match=r"^setting port: .*found 99999"):
        get_settings(port=99999)


def test_the_inventory_is_named_by_where_it_was_declared(monkeypatch):
    file = config("inventory = '{\"cpus\": 0}'")
    with pytest.raises(SettingsError) as caught:
        read_inventory(get_settings())
    assert caught.value.message.startswith(f"setting inventory in {file}: cpus must be")
    monkeypatch.setenv("MLOC_INVENTORY", '{"cpu": 1}')
    with pytest.raises(SettingsError, match=r"^setting MLOC_INVENTORY: unknown field 'cpu'"):
        read_inventory(get_settings())


@pytest.mark.parametrize(
    ("home", "text"),
    [
        ("/tmp/" + "x" * 300, "config.toml cannot be read: File name too long"),
        ("~no-such-user/x", "setting MLOC_HOME: this user has no home directory, found '~no-such-user/x'"),
    ],
)
def test_a_home_that_cannot_be_looked_into_stops_only_what_needs_settings(monkeypatch, home, text):
    monkeypatch.setenv("MLOC_HOME", home)
    assert mloc("version").exit_code == 0
    result = mloc("models", "list")
    assert result.exit_code == 2
    assert text in result.stderr.splitlines()[0]
    assert text in mloc("doctor", "--json").stdout


def test_keys_that_nothing_reads_are_told_by_every_command_and_by_doctor(monkeypatch):
    monkeypatch.setattr(doctor, "_prefect", lambda _settings: iter(()))
    file = config("max_retries = 1\nMLOC_PORT = 8001\nprot = 3\n\n[pyhton]\nvllm = '/x'\n[other]\n")
    lines = [
        f"{file}:3:1: unknown setting 'prot' is ignored; did you mean 'port'?",
        f"{file}:5:2: unknown setting 'pyhton' is ignored; did you mean 'python'?",
        f"{file}:7:2: unknown setting 'other' is ignored",
    ]
    result = mloc("version")
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [f"warning: {line}" for line in lines]
    report = mloc("doctor", "--json")
    assert report.stderr == ""
    assert [f["text"] for f in json.loads(report.stdout)["findings"] if f["topic"] == "settings"] == lines


URL_SETTINGS = ("MLOC_HOME", "RESULTS_DIR", "MLOC_RESULTS_DIR", "MLOC_MIRRORS", "MLOC_LOG_FILE")


@pytest.mark.parametrize("name", URL_SETTINGS)
def test_a_url_is_not_taken_for_a_relative_path(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, "s3://bucket/runs")
    result = mloc("models", "list")
    assert result.exit_code == 2
    text = f"error: setting {name}: must be a path of this machine, not a URL, found 's3://bucket/runs'"
    assert result.stderr.splitlines()[0] == text
    assert ("output.destination.path" in result.stderr) == name.endswith("RESULTS_DIR")
    assert not any(tmp_path.iterdir())


def test_options_and_other_forms_of_paths_refuse_urls_too(monkeypatch):
    for value in ("s3://bucket/runs", Path("s3://bucket/runs")):
        with pytest.raises(SettingsError, match="must be a path of this machine, not a URL"):
            get_settings(results_dir=value)
    monkeypatch.setenv("MLOC_PYTHON", '{"vllm": "s3://bucket/python"}')
    with pytest.raises(SettingsError, match="must be a path of this machine, not a URL"):
        get_settings()
    monkeypatch.delenv("MLOC_PYTHON")
    monkeypatch.setenv("MLOC_INVENTORY", "s3://bucket/inventory.json")
    with pytest.raises(SettingsError, match="must be JSON or a file of this machine, not a URL"):
        read_inventory(get_settings())


def test_a_file_url_is_a_path(monkeypatch, tmp_path):
    folder = tmp_path / "a b%20"
    monkeypatch.setenv("MLOC_HOME", folder.as_uri())
    monkeypatch.setenv("RESULTS_DIR", (folder / "out").as_uri())
    settings = get_settings()
    assert (settings.home, settings.results_root) == (folder, folder / "out")
