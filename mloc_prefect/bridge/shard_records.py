"""Records of the shards of a task: created by the first event about a shard, moved by later ones. [protocol 2.7].

No Prefect run covers the whole life of a shard (its attempts may be runs on the pool), so the runner of the parent task
reports it in events `shard` with the facts {step, part: {task_id, index, total}, part_attempt, ...}.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mloc_prefect.plan.shard_ranges import ShardRange, shard_spec
from mloc_prefect.store import transitions
from mloc_prefect.store.record_views import with_views
from mloc_prefect.store.states import Phase, StatusMark
from mloc_prefect.store.transitions import AttemptLocation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.store.records import TaskRecord
    from mloc_prefect.store.transitions import RecordStep

UNKNOWN = "prefect"


def shard_record(parent: TaskRecord, part: Mapping[str, Any], at: float) -> TaskRecord:
    """Return the record of one shard of `parent` in its first state.

    Args:
        parent: The sharded task, with its document.
        part: `task_id`, `index` and `total`.
        at: Time of the first event about it, seconds since the epoch.
    """
    shard = ShardRange(int(part["index"]), int(part["total"]), parent.task_id)
    spec = parent.parsed.get("spec")
    parsed = {**parent.parsed, "spec": shard_spec(spec, shard)} if isinstance(spec, dict) else parent.parsed
    shard_task = replace(
        parent,
        task_id=str(part["task_id"]),
        parsed=parsed,
        mark=StatusMark(1, Phase.PENDING),
        submitted_at=datetime.fromtimestamp(at, UTC).isoformat(),
        submitted_ts=at,
        last_queue_ts=at,
        assigned_worker=None,
        topic=None,
        error=None,
        parent_task_id=parent.task_id,
        shard_index=shard.index,
        shard_total=shard.total,
        next_retry_at=None,
        last_failed_worker=None,
        graph_node_name=None,
        dispatched_ts=None,
        started_ts=None,
        finished_ts=None,
        depends_on=(),
        protocol=None,
        flow_run=None,
    )
    return with_views(shard_task)


def shard_steps(record: TaskRecord, facts: Mapping[str, Any], at: float, *, busy: bool) -> tuple[RecordStep, ...]:
    """Return the steps that follow from one event about a shard, in order; none for an unknown event.

    Args:
        record: The shard as it is.
        facts: Payload of the event.
        at: Time of the event, seconds since the epoch.
        busy: Whether its worker has other tasks.
    """
    what, attempt = facts.get("step"), int(facts.get("attempt") or 1)
    worker = facts.get("worker")
    location = AttemptLocation(str(worker or UNKNOWN), str(facts.get("protocol") or "ours"), facts.get("flow_run"))
    if what == "waiting":
        return (transitions.waiting(attempt, str(facts.get("reason") or "")),)
    if what == "placed":
        begun = bool(facts.get("begun", location.protocol == "ours"))
        given = transitions.placed(record, attempt, location, at)
        return (given, transitions.started(record, attempt, location, at)) if begun else (given,)
    error = str(facts.get("error") or "failed")
    if what == "failed" and facts.get("final"):
        return (transitions.failed(record, attempt, error, at, busy=busy),)
    if what == "failed":
        due = facts.get("next_retry_at")
        return (transitions.retried(record, attempt, error=error, worker=worker, next_retry_at=due, at=at, busy=busy),)
    return (transitions.done(record, max(attempt, record.mark.attempt), at, busy=busy),) if what == "done" else ()


def final_step(record: TaskRecord, parent: TaskRecord, at: float, *, busy: bool) -> RecordStep:
    """Return the last step of a shard that is still open when its parent task has ended."""
    attempt = record.mark.attempt
    if parent.mark.phase is Phase.DONE:
        return transitions.done(record, attempt, at, busy=busy)
    if parent.mark.phase is Phase.CANCELLED:
        return transitions.cancelled(record, attempt, at, busy=busy)
    error = f"not finished: task {parent.task_id}, of which it is a part, has failed"
    return transitions.failed(record, attempt, error, at, busy=busy)
