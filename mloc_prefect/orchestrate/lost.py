"""Workers that end before what they run: a loss costs an attempt and a start, a stop on purpose costs neither.

Without the difference a few upgrades in the course of one long run would use up what is meant for crashes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.errors import ExecutionError
from mloc_prefect.execution.protocol import ExecutionFailure

if TYPE_CHECKING:
    from collections.abc import Mapping

STOPS_LABEL = "mloc.stopped-starts"
"""Label of a root run: numbers of its starts that ended because their worker was stopped, e.g. `1,3`."""

STOPPED = "its worker was stopped"
"""Message of the Crashed state of a run whose worker was stopped."""


class WorkerLostError(ExecutionError):
    """The worker of an attempt ended before the attempt did.

    Attributes:
        worker: Its id, or None when nobody knows.
    """

    def __init__(self, message: str, worker: str | None) -> None:
        super().__init__(message, retryable=True, failure=ExecutionFailure(message, kind="killed"))
        self.worker = worker


class WorkerStoppedError(WorkerLostError):
    """Somebody stopped the worker of an attempt; another attempt costs no retry."""


def stopped_starts(labels: Mapping[str, Any] | None) -> frozenset[int]:
    """Return the numbers of the starts of a root run that ended because their worker was stopped."""
    words = str((labels or {}).get(STOPS_LABEL, "")).split(",")
    return frozenset(int(word) for word in words if word.isdigit())


def with_stop(labels: Mapping[str, Any] | None, start: int) -> dict[str, str]:
    """Return the label that says so of one more start."""
    return {STOPS_LABEL: ",".join(map(str, sorted({*stopped_starts(labels), start})))}
