"""Errors of attempts whose worker ended first: a lost worker costs a retry, a stopped one does not.

Otherwise a few upgrades during one long run would use up the retries that are meant for crashes.
"""

from __future__ import annotations

from mloc_prefect.errors import ExecutionError, ExecutionFailure


class WorkerLostError(ExecutionError):
    """The worker of an attempt was lost before the attempt ended.

    Attributes:
        worker: Its id, or None when it is not known.
    """

    def __init__(self, message: str, worker: str | None) -> None:
        super().__init__(message, retryable=True, failure=ExecutionFailure(message, kind="killed"))
        self.worker = worker


class WorkerStoppedError(WorkerLostError):
    """The worker of an attempt was stopped on purpose; another attempt costs no retry."""
