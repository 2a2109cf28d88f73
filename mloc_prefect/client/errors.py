"""The errors of the clients: each is also one of the errors that the rest of the package raises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mloc_prefect.errors import ConflictError, DispatchError, MlocError, SpecError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.diagnostics.diagnostic import Diagnostic


class UnreachableError(DispatchError):
    """The endpoint gives no answer: nothing listens, the network fails, it is silent, or it is stopping."""


class AccessError(DispatchError):
    """The endpoint refuses the token, or wants one (401, 403)."""


class RefusedRequestError(MlocError):
    """The endpoint refuses the content of a request (400, 413, 422)."""

    exit_code = 2
    http_status = 400


class RefusedSpecError(SpecError, RefusedRequestError):
    """The endpoint refuses a spec.

    Attributes:
        diagnostics: All its errors, each with line and column (from 1), code, message, and path in the document.
    """

    exit_code = 2

    def __init__(self, message: str, diagnostics: Sequence[Diagnostic]) -> None:
        super().__init__(diagnostics)
        self.message = message


class NotFoundError(UsageError):
    """The endpoint has no such task, result, file or worker (404)."""

    http_status = 404


class RefusedConflictError(UsageError, ConflictError):
    """The request contradicts an earlier one, or the state of a task (409)."""

    http_status = 409


class WaitTimeoutError(MlocError):
    """Tasks have not ended in the given time; they go on."""
