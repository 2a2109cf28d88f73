"""Error boundary of commands: an error becomes one line, a help line and an exit code."""

from __future__ import annotations

import errno
import functools
import os
import sys
import traceback
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import typer

from mloc_prefect.errors import DiagnosticsError, MlocError, only_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

P = ParamSpec("P")
R = TypeVar("R")

EXIT_UNEXPECTED = 1
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
EXIT_SPEC = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells do it


def examples(*lines: str) -> str:
    """Return the epilog of a command's help: one example per line."""
    escaped = (line.replace("[", "\\[") for line in lines)
    return "\n\n".join(["[bold]Examples[/bold]", *(f"[cyan]$ {line}[/cyan]" for line in escaped)])


def debugging() -> bool:
    """Return whether to show tracebacks (`mloc --debug`, or MLOC_DEBUG=1)."""
    return os.environ.get("MLOC_DEBUG", "") not in {"", "0", "false"}


def guarded(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a command so that errors become a message on stderr and an exit code."""

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
        except OSError as error:
            if error.errno in _FULL and not _is_full(sys.stdout):  # standard output may have dropped what it held
                hint = "free space where standard output, MLOC_HOME and the results root lie"
                _print_lines(f"cannot write: {error.strerror}", hint)
            elif not _is_full(sys.stdout):
                _show_unexpected(error)
            else:
                _print_lines(f"cannot write to standard output: {error.strerror or error}", None)
                sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - as long as the process
            raise typer.Exit(EXIT_UNEXPECTED) from None
        except Exception as error:  # process boundary: users see one line, and the traceback with MLOC_DEBUG
            cause = only_error(error)
            if isinstance(cause, MlocError):
                show_error(cause)
                raise typer.Exit(cause.exit_code) from None
            _show_unexpected(cause)
            raise typer.Exit(EXIT_UNEXPECTED) from None

    return run


def _is_full(stream: TextIO) -> bool:
    """Return whether what was written to a stream cannot leave it (disk full, I/O error)."""
    try:
        stream.flush()
    except OSError:
        return True
    return False


def show_error(error: MlocError) -> None:
    """Print an error on stderr: diagnostics in compiler style, everything else as `error:` and `help:` lines."""
    from mloc_prefect.cli.display.console import stderr
    from mloc_prefect.cli.display.diagnostic_text import show_diagnostics

    if debugging():
        _print_traceback(error)
    if isinstance(error, DiagnosticsError):
        show_diagnostics(stderr(), error.diagnostics)
        return
    _print_lines(error.message, error.hint)


def _show_unexpected(error: BaseException) -> None:
    if debugging():
        _print_traceback(error)
        return
    text = " ".join(str(error).split()) or "no message"
    _print_lines(
        f"unexpected {type(error).__name__}: {text}",
        "run again with MLOC_DEBUG=1 for the traceback, and please report it",
    )


def _print_traceback(error: BaseException) -> None:
    from mloc_prefect.diagnostics.printable import printable

    sys.stderr.write(printable("".join(traceback.format_exception(error))))


def _print_lines(message: str, hint: str | None) -> None:
    from mloc_prefect.cli.display.console import labelled, stderr

    console = stderr()
    console.print(labelled("error", message, "bold red"))
    if hint:
        console.print(labelled("  help", hint, "cyan"))
