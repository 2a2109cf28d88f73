"""A Prefect that is newer than the tested one is one line of warning, wherever Prefect is used."""

from __future__ import annotations

from importlib import metadata

import pytest

from mloc_prefect.cli.app import app
from mloc_prefect.cli.commands import doctor
from mloc_prefect.prefect_ext import tested_version
from mloc_prefect.settings import get_settings


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Versions that the metadata of packages seem to tell."""
    told: dict[str, str] = {}
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: told.get(name) or real(name))
    return told


def test_what_all_tests_run_with_is_no_news(installed: dict[str, str]) -> None:
    pinned = tested_version._pinned()
    assert pinned is not None
    installed["prefect"] = pinned
    assert tested_version.newer_than_tested() is None


@pytest.mark.parametrize(("version", "warns"), [("3.8.8", False), ("3.99.0", True), ("3.100.0.dev3", True)])
def test_newer_is_told_and_older_is_not(installed: dict[str, str], version: str, warns: bool) -> None:
    installed["prefect"] = version
    assert (tested_version.newer_than_tested() is not None) is warns


def test_the_commands_that_use_prefect_say_it_in_one_line(
    installed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    installed["prefect"] = "3.99.0"
    for command, times in (("run", 1), ("version", 0)):
        with pytest.raises(SystemExit):
            app([command, *(["no-such-file.yaml"] if command == "run" else [])])
        err = capsys.readouterr().err
        assert len([line for line in err.splitlines() if "Prefect 3.99.0 is newer than" in line]) == times


def test_doctor_notes_it(installed: dict[str, str]) -> None:
    installed["prefect"] = "3.99.0"
    found = [f for f in doctor._prefect(get_settings()) if f.name == "version"]
    assert [f.level for f in found] == ["note"]
