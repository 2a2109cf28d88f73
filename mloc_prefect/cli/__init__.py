"""The `mloc` command."""

from __future__ import annotations


def main() -> None:
    """Entry point of the `mloc` command; everything else is imported when it is needed."""
    from mloc_prefect.cli.app import app

    app(prog_name="mloc")
