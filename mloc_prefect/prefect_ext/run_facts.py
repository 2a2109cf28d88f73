"""What our runs store in Prefect and read back: labels, state names and messages, event names.

Stored data of users' servers: none of these texts may change without reading the old form for one release.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

STAGE_EVENT_PREFIX = "mloc.stage."
"""Events of a stage's attempts are `mloc.stage.<what>`."""

ATTEMPT_LABEL, ERROR_LABEL, NEXT_LABEL = "mloc.attempt", "mloc.error", "mloc.next-retry-at"
WORKER_LABEL, INCARNATION_LABEL = "prefect.worker.name", "mloc.incarnation"

COMMITTED = "result committed"
"""Message of a stage's Completed state, for people; programs read `StateCode.COMMITTED`."""

WAITING = "Waiting"
"""Name of the state of an attempt that waits for a place: Prefect would make `Scheduled` `Late`, without our words."""

COORDINATOR_QUEUE = "coordinator"
"""Queue of workflow runs: they wait for their stages, hold no lease and count against no limit."""

SHARD_FLOW = "mloc-shard"
"""Name of the flow of all shards."""

STOPS_LABEL = "mloc.stopped-starts"
"""Label of a workflow run: numbers of its starts that ended because their worker was stopped, e.g. `1,3`."""

STOPPED = "its worker was stopped"
"""Message of the Crashed state of a run whose worker was stopped; programs read `StateCode.WORKER_STOPPED`."""


def stopped_starts(labels: Mapping[str, Any] | None) -> frozenset[int]:
    """Return the numbers of the starts of a workflow run that ended because their worker was stopped."""
    words = str((labels or {}).get(STOPS_LABEL, "")).split(",")
    return frozenset(int(word) for word in words if word.isdigit())


def with_stop(labels: Mapping[str, Any] | None, start: int) -> dict[str, str]:
    """Return the label that adds one more start that was stopped."""
    return {STOPS_LABEL: ",".join(map(str, sorted({*stopped_starts(labels), start})))}


def taken_by(worker: str, incarnation: str) -> str:
    """Return the message of a Pending run that a worker took; programs read `StateCode.CLAIMED`."""
    return f"taken by {worker} ({incarnation})"
