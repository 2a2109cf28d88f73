"""The edge of the command: errors become one clear line, a help line and the exit code of their phase."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import typer

from mloc_prefect.errors import DiagnosticsError, MlocError

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")

EXIT_UNEXPECTED = 1
EXIT_SPEC = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells do it


def examples(*lines: str) -> str:
    """Return the epilogue of a command's help: one example a line."""
    escaped = (line.replace("[", "\\[") for line in lines)
    return "\n\n".join(["[bold]Examples[/bold]", *(f"[cyan]$ {line}[/cyan]" for line in escaped)])


def debugging() -> bool:
    """Return whether tracebacks are wanted (`mloc --debug`, or MLOC_DEBUG=1)."""
    return os.environ.get("MLOC_DEBUG", "") not in {"", "0", "false"}


def guarded(function: Callable[P, R]) -> Callable[P, R]:
    """Turn what a command raises into a message on stderr and an exit code."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except MlocError as error:
            show_error(error)
            raise typer.Exit(error.exit_code) from None
        except Exception as error:  # boundary: a user sees one line, the traceback on demand
            _show_unexpected(error)
            raise typer.Exit(EXIT_UNEXPECTED) from None

    return run


def show_error(error: MlocError) -> None:
    """Print `error` on stderr: diagnostics in compiler style, everything else as `error:` and `help:` lines."""
    from mloc_prefect.cli.console import stderr
    from mloc_prefect.cli.diagnostics import show_diagnostics

    if debugging():
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, DiagnosticsError):
        show_diagnostics(stderr(), error.diagnostics)
        return
    _lines(error.message, error.hint)


def _show_unexpected(error: Exception) -> None:
    if debugging():
        traceback.print_exception(error, file=sys.stderr)
        return
    text = " ".join(str(error).split()) or "no message"
    _lines(
        f"unexpected {type(error).__name__}: {text}",
        "run again with MLOC_DEBUG=1 for the traceback, and please report it",
    )


def _lines(message: str, hint: str | None) -> None:
    from mloc_prefect.cli.console import labelled, stderr

    console = stderr()
    console.print(labelled("error", message, "bold red"))
    if hint:
        console.print(labelled("  help", hint, "cyan"))
