"""Commands in the process of the test."""

from __future__ import annotations

from typer.testing import CliRunner

from mloc_prefect.cli.app import app


def mloc(*arguments):
    return CliRunner().invoke(app, arguments)
