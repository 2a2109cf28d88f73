"""What an error of a command looks like: one line, a help line, the exit code of its kind."""

from __future__ import annotations

import typer
from typer.testing import CliRunner

from mloc_prefect.cli.error_boundary import guarded
from mloc_prefect.diagnostics.diagnostic import Diagnostic
from mloc_prefect.errors import ArtifactError, DispatchError, MlocError, SpecError
from tests.support.command_line import mloc


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


def test_an_error_inside_the_group_of_a_task_group_is_told_as_itself():
    refusal = DispatchError("worker 'w' runs already, as process 7", hint="give each worker a name of its own")
    result = failing(ExceptionGroup("unhandled errors in a TaskGroup", [ExceptionGroup("again", [refusal])]))
    assert (result.exit_code, result.stderr) == (4, f"error: {refusal.message}\n  help: {refusal.hint}\n")
    assert failing(ExceptionGroup("x", [KeyError("a")])).stderr.startswith("error: unexpected KeyError")


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
