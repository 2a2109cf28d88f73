"""From an event of a stage to the change of its record and its MLOC messages: a pure table.

See decisions, "Stage run -> MLOC record and messages", and protocol 3.2. Every message has the keys of both
generations: the original one reads `extra`, `result` and `error` at the top level, the later one `payload`.
`payload.attempt` is ours: the attempt of the message.

For an MLOC worker nothing is published here: its dispatcher and the worker itself publish.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mloc_prefect.plan.shard_ranges import MULTI
from mloc_prefect.store.interfaces import TASK_EVENTS, TASKS, WORKER_EVENTS
from mloc_prefect.store.states import Phase, StatusMark

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.store.interfaces import Message
    from mloc_prefect.store.records import TaskRecord

ORIGINAL = "original"
CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class RecordStep:
    """One call of `TaskStore.transition`.

    Attributes:
        mark: The new mark of the record.
        changes: New values of other fields.
        messages: Messages that are published with the step.
        add: Counters that are increased: `tasks_succeeded`, `tasks_failed`, `tasks_requeued`, and for each of the
            timings `queue`, `execution` and `total`: `<bucket>_<timing>_count` and `<bucket>_<timing>_total_sec` in
            the buckets `overall` and the record's category. [protocol 1.6]
    """

    mark: StatusMark
    changes: Mapping[str, Any]
    messages: tuple[Message, ...] = ()
    add: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AttemptLocation:
    """Where an attempt runs.

    Attributes:
        worker: Worker id.
        protocol: `ours` or `original`.
        flow_run: Flow run of the stage, or None.
    """

    worker: str
    protocol: str = "ours"
    flow_run: str | None = None


def waiting(attempt: int, reason: str) -> RecordStep:
    """Return the step of a task that is ready, but for which no worker has room."""
    return RecordStep(StatusMark(attempt, Phase.WAITING), {"error": reason or None, "next_retry_at": None})


def placed(record: TaskRecord, attempt: int, location: AttemptLocation, at: float) -> RecordStep:
    """Return the step of an attempt that was sent to a worker (Prefect: Pending)."""
    changes = _at(location) | {"error": None, "next_retry_at": None, "last_failed_worker": None, "dispatched_ts": at}
    message: dict[str, Any] = {
        "task_id": record.task_id,
        "task": record.parsed,
        "task_type": record.task_type,
        "assigned_worker": location.worker,
        "dispatched_at": _iso(at),
        "parent_task_id": record.parent_task_id,
    }
    if record.shard_index is not None:
        message |= {"shard_index": record.shard_index, "shard_total": record.shard_total}
    messages: tuple[Message, ...] = ((TASKS, message), status(location.worker, "RUNNING", at))
    return RecordStep(
        StatusMark(attempt, Phase.DISPATCHED), changes, _ours(location.protocol, location.worker, messages)
    )


def started(record: TaskRecord, attempt: int, location: AttemptLocation, at: float) -> RecordStep:
    """Return the step of an attempt that runs at a worker."""
    dispatched = record.dispatched_ts if record.mark.attempt == attempt and record.dispatched_ts else at
    changes = _at(location) | {"error": None, "next_retry_at": None, "started_ts": at, "dispatched_ts": dispatched}
    payload = {"taskType": record.task_type, "dispatched_at": _iso(dispatched), "started_at": _iso(at)}
    messages = (
        _event("TASK_STARTED", record, location.worker, attempt, at, payload=payload),
        status(location.worker, "RUNNING", at, {"task_id": record.task_id}),
    )
    return RecordStep(StatusMark(attempt, Phase.STARTED), changes, _ours(location.protocol, location.worker, messages))


def retried(
    record: TaskRecord,
    attempt: int,
    *,
    error: str,
    worker: str | None,
    next_retry_at: str | None,
    at: float,
    busy: bool = False,
) -> RecordStep:
    """Return the step of a failed attempt that another one follows; see `done`."""
    worker = worker or record.assigned_worker
    changes: dict[str, Any] = {
        "error": error,
        "next_retry_at": next_retry_at,
        "last_failed_worker": worker,
        "assigned_worker": None,
        "topic": None,
        "protocol": None,
        "last_queue_ts": at,
    }
    messages = _failure(record, worker, attempt, error, at, busy=busy)
    return RecordStep(StatusMark(attempt + 1, Phase.WAITING), changes, messages, {"tasks_requeued": 1})


def done(record: TaskRecord, attempt: int, at: float, *, busy: bool = False) -> RecordStep:
    """Return the step of a task whose result is committed.

    Args:
        record: The record as it is.
        attempt: The attempt.
        at: When, seconds since the epoch.
        busy: Whether its worker has other tasks.
    """
    changes = {"error": None, "next_retry_at": None, "last_failed_worker": None, "finished_ts": at}
    worker = record.assigned_worker
    payload = _times(record, at)
    messages: tuple[Message, ...] = (
        _event("TASK_SUCCEEDED", record, worker, attempt, at, payload=payload, result={}),
        *_idle(record, worker, at, busy=busy),
    )
    step = RecordStep(StatusMark(attempt, Phase.DONE), changes, _ours(record.protocol, worker, messages))
    return RecordStep(step.mark, step.changes, step.messages, {"tasks_succeeded": 1.0} | _timings(record, at))


def failed(record: TaskRecord, attempt: int, error: str, at: float, *, busy: bool = False) -> RecordStep:
    """Return the step of a task that has finally failed; see `done`."""
    changes = {"error": error, "next_retry_at": None, "finished_ts": at}
    if record.assigned_worker:
        changes["last_failed_worker"] = record.assigned_worker
    messages = _failure(record, record.assigned_worker, attempt, error, at, busy=busy)
    return RecordStep(StatusMark(attempt, Phase.FAILED), changes, messages, {"tasks_failed": 1})


def cancelled(record: TaskRecord, attempt: int, at: float, *, busy: bool = False) -> RecordStep:
    """Return the step of a cancelled task; see `done`."""
    changes = {"error": CANCELLED, "next_retry_at": None, "finished_ts": at}
    messages = _failure(record, record.assigned_worker, attempt, CANCELLED, at, busy=busy)
    return RecordStep(StatusMark(attempt, Phase.CANCELLED), changes, messages, {"tasks_failed": 1})


def status(worker: str, status: str, at: float, extra: Mapping[str, Any] | None = None) -> Message:
    """Return a STATUS message; a worker's has `extra`, an orchestrator's has none."""
    message: dict[str, Any] = {"type": "STATUS", "worker_id": worker, "status": status, "ts": _iso(at)}
    message |= {"tags": [], "metrics": {}, "payload": dict(extra or {})}
    if extra is not None:
        message["extra"] = dict(extra)
    return WORKER_EVENTS, message


def of_task_alone(step: RecordStep) -> RecordStep:
    """Return a step without messages about its worker, for a caller that does not know the worker's other tasks.

    The projector knows them, and publishes the status of the worker when the run has ended.
    """
    return replace(step, messages=_of_task(step.messages))


def _failure(
    record: TaskRecord, worker: str | None, attempt: int, error: str, at: float, *, busy: bool
) -> tuple[Message, ...]:
    messages = (
        _event("TASK_FAILED", record, worker, attempt, at, payload=_times(record, at), error=error),
        *_idle(record, worker, at, busy=busy),
    )
    return _ours(record.protocol, worker, messages)


def _event(
    kind: str,
    record: TaskRecord,
    worker: str | None,
    attempt: int,
    at: float,
    *,
    payload: Mapping[str, Any],
    error: str | None = None,
    result: Mapping[str, Any] | None = None,
) -> Message:
    message: dict[str, Any] = {
        "type": kind,
        "ts": _iso(at),
        "worker_id": worker,
        "task_id": record.task_id,
        "status": None,
        "error": error,
        "payload": {**payload, "attempt": attempt},
    }
    if result is not None:
        message["result"] = dict(result)
    return TASK_EVENTS, message


def _idle(record: TaskRecord, worker: str | None, at: float, *, busy: bool) -> tuple[Message, ...]:
    if worker is None or record.mark.phase < Phase.DISPATCHED:  # it was never at a worker
        return ()
    return (status(worker, "RUNNING" if busy else "IDLE", at, {"last_task": record.task_id}),)


def _at(location: AttemptLocation) -> dict[str, Any]:
    changes: dict[str, Any] = {"assigned_worker": location.worker, "topic": TASKS, "protocol": location.protocol}
    return changes | ({"flow_run": location.flow_run} if location.flow_run else {})


def _ours(protocol: str | None, worker: str | None, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return the messages that we publish: of a sharded task, which no worker gets, only those about the task."""
    if worker == MULTI:
        return _of_task(messages)
    return () if protocol == ORIGINAL else messages


def _of_task(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    return tuple(message for message in messages if message[0] == TASK_EVENTS)


def _times(record: TaskRecord, at: float) -> dict[str, Any]:
    return {
        "taskType": record.task_type,
        "runtime_sec": None if record.started_ts is None else round(max(at - record.started_ts, 0.0), 6),
        "started_at": _iso(record.started_ts),
        "finished_at": _iso(at),
        "dispatched_at": _iso(record.dispatched_ts),
    }


def _timings(record: TaskRecord, at: float) -> dict[str, float]:
    found: dict[str, float] = {"total": at - record.submitted_ts}
    if record.started_ts is not None:
        found |= {"queue": record.started_ts - record.submitted_ts, "execution": at - record.started_ts}
    sums: dict[str, float] = {}
    for bucket in ("overall", record.category):
        for timing, seconds in found.items():
            sums[f"{bucket}_{timing}_count"] = 1
            sums[f"{bucket}_{timing}_total_sec"] = max(seconds, 0.0)
    return sums


def _iso(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat()
