"""The one error tree: phase = class = CLI exit code = HTTP status."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.execution.protocol import ExecutionFailure
    from mloc_prefect.spec.diagnostics import Diagnostic


class MlocError(Exception):
    """Base of every error that a user may see.

    Attributes:
        message: One plain sentence: what is wrong and where.
        hint: What to do about it, or None.
        exit_code: Exit code of the `mloc` command for this phase.
        http_status: Status of the HTTP endpoint for this phase.
    """

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  help: {self.hint}" if self.hint else self.message


class DiagnosticsError(MlocError):
    """An error that is a list of diagnostics, each with its place in the file."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n".join(str(d) for d in self.diagnostics))


class SpecError(DiagnosticsError):
    """The text is not a valid MLOC spec."""

    exit_code = 2
    http_status = 400


class SettingsError(MlocError):
    """A variable or the config file has a value that cannot be read; the message names it."""

    exit_code = 2


class PlanError(MlocError):
    """The spec is valid, but no plan for it can run (here)."""

    exit_code = 3
    http_status = 400


class DispatchError(MlocError):
    """No place, server or process could be had to run a stage."""

    exit_code = 4
    http_status = 503


class StoreError(DispatchError):
    """The store of records (Redis) cannot be reached or refuses; the message names it by host and port."""


class FencedError(DispatchError):
    """The lease under which a step was to be taken has gone to another holder."""


class UsageError(MlocError):
    """An argument of a command, or a name in it, that cannot be meant."""

    exit_code = 2  # as for unknown options
    http_status = 400


class ConflictError(MlocError):
    """The request contradicts an earlier one."""

    http_status = 409


class ExecutionError(MlocError):
    """A stage ran and failed.

    Attributes:
        retryable: False when the same input must fail again (mistakes of the user).
        failure: The facts that crossed the process boundary, if there are any.
    """

    exit_code = 5

    def __init__(
        self, message: str, *, retryable: bool = True, hint: str | None = None, failure: ExecutionFailure | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retryable = retryable
        self.failure = failure


class ArtifactError(MlocError):
    """A file, archive or destination could not be read, written or delivered."""

    exit_code = 6


class MissingExtraError(MlocError):
    """A library or environment that the task needs is not installed."""

    exit_code = 7
    http_status = 501


def reason(error: Exception) -> str:
    """Return what an error says in one line, for logs: without help, and never nothing."""
    return (error.message if isinstance(error, MlocError) else str(error)) or type(error).__name__
