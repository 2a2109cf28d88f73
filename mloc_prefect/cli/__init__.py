"""The `mloc` command."""

from __future__ import annotations

import sys
from io import TextIOWrapper


def main() -> None:
    """Entry point of the `mloc` command; everything else is imported when it is needed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # answers of models go to any terminal
    from mloc_prefect.cli.app import app

    app(prog_name="mloc")
