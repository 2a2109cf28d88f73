"""The error tree: the class of an error decides the exit code of the command and the HTTP status."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.diagnostics.diagnostic import Diagnostic


class MlocError(Exception):
    """Base class of every error that a user may see.

    Attributes:
        message: One plain sentence: what is wrong and where.
        hint: How to fix it, or None.
        exit_code: Exit code of the `mloc` command.
        http_status: Status that the HTTP endpoint answers with.
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
    """An error made of diagnostics, each with its position in the file."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n".join(str(d) for d in self.diagnostics))


class SpecError(DiagnosticsError):
    """The text is not a valid MLOC spec."""

    exit_code = 2
    http_status = 400


class SettingsError(MlocError):
    """A setting has a value that cannot be read; the message names the variable or the key."""

    exit_code = 2


class PlanError(MlocError):
    """The spec is valid, but its plan cannot run on this machine or in this installation."""

    exit_code = 3
    http_status = 400


class DispatchError(MlocError):
    """A stage could not be started: no worker, server or process was available."""

    exit_code = 4
    http_status = 503


class StoreError(DispatchError):
    """Redis, which stores the task records, is unreachable or refuses a command; the message names host and port."""


class FencedError(DispatchError):
    """The lease that a step needs now belongs to another holder."""


class UsageError(MlocError):
    """An argument of a command is invalid or names something that does not exist."""

    exit_code = 2  # the same as for unknown options
    http_status = 400


class ConflictError(MlocError):
    """The request contradicts an earlier one."""

    http_status = 409


class ExecutionError(MlocError):
    """A stage ran and failed.

    Attributes:
        retryable: False if the same input must fail again (a mistake of the user).
        failure: What the child process reported, or None.
    """

    exit_code = 5

    def __init__(
        self, message: str, *, retryable: bool = True, hint: str | None = None, failure: ExecutionFailure | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retryable = retryable
        self.failure = failure


@dataclass(frozen=True, slots=True)
class ExecutionFailure:
    """A failed attempt.

    Attributes:
        message: One sentence for the user.
        kind: `user` (bad input; never retried), `error` (the executor raised), `killed` (process ended by a signal),
            `exited` (process exited on its own), `oom` (out of memory), `timeout`, `stalled`, `cancelled`,
            `missing` (a library or model is not installed; never retried).
        error_type: Class name of the exception, or None.
        traceback: Text of the traceback, or None.
        signal: Name of the signal that ended the process, or None.
        exit_code: Exit status of the process, or None.
        log_tail: Last lines of the host's output.
        hint: How to fix it, or None.
    """

    message: str
    kind: Literal["user", "error", "killed", "exited", "oom", "timeout", "stalled", "cancelled", "missing"] = "error"
    error_type: str | None = None
    traceback: str | None = None
    signal: str | None = None
    exit_code: int | None = None
    log_tail: str = ""
    hint: str | None = None

    @property
    def retryable(self) -> bool:
        """Whether another attempt may succeed."""
        return self.kind not in {"user", "missing", "cancelled"}

    def to_wire(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)

    @classmethod
    def from_wire(cls, data: dict[str, Any]) -> ExecutionFailure:
        """Return the failure in `data`."""
        return cls(**{k: v for k, v in data.items() if k in cls.__dataclass_fields__})


class ArtifactError(MlocError):
    """A file, archive or destination could not be read, written or delivered."""

    exit_code = 6


class MissingExtraError(MlocError):
    """A library or environment that the task needs is not installed."""

    exit_code = 7
    http_status = 501


def only_error(error: BaseException) -> BaseException:
    """Return the one error inside an exception group, however deep, or `error` itself when there is not just one.

    A task group wraps whatever ends it: what a user has to know would be hidden behind the name of the group.
    """
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def reason(error: BaseException) -> str:
    """Return an error as one line for logs and messages: without its hint, and never empty."""
    text = error.message if isinstance(error, MlocError) else str(error)
    return " ".join(text.split()) or type(error).__name__
