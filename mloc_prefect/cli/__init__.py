"""The `mloc` command: options in, lines for people or `--json` objects out.

Commands import what they need when they run, so that help and version stay fast. No other package imports this one; it
must not know how stages run or how records are stored, only which package or endpoint to ask.

Modules:
    `app`: the command tree.
    `commands`: the commands that work on this machine.
    `client`: the commands that call an endpoint.
    `selftest`: the checks of `mloc selftest`.
    `display`: consoles, tables, progress, diagnostics, answers.
    `run_session`: what `mloc run` does.
    `resuming`: whether a run can be resumed, and the command for it.
    `prefect_api`: which Prefect server to use, and requests to it.
    `service_command`: logging and shutdown of `serve`, `bridge` and `worker start`.
    `interrupt`: an event loop that Ctrl-C and SIGTERM stop in order.
    `error_boundary`: errors as one line, a hint and an exit code.
    `__main__`: `python -m mloc_prefect.cli`.
"""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper


def _open_closed_streams() -> None:
    """Let a command without output streams run without output: Python has None for a stream that is closed.

    Its descriptor is opened too; otherwise the next file or socket would get it, and libraries would write there.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))


def _flush_output() -> None:
    """Write what is left, so that a full disk is one line and an exit code, and no warning of the interpreter."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"error: cannot write to standard output: {error.strerror or error}", file=sys.stderr)
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - as long as the process
        raise SystemExit(1) from None


def main() -> None:
    """Run the `mloc` command; everything else is imported when it is needed."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # model output may not fit the encoding of the terminal
    from mloc_prefect.cli.app import app

    try:
        app(prog_name="mloc")
    finally:
        _flush_output()
