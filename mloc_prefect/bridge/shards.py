"""Records of the parts of a divided task: made when the first is heard of one, moved by what its parent's runner says.

[protocol 2.7]. Prefect has no run for the whole life of a part (its attempts may be runs on the pool), so the stage
runner of the whole task tells it, as facts `shard` {step, part: {task_id, index, total}, part_attempt, ...}.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mloc_prefect.bridge import mapping
from mloc_prefect.bridge.mapping import Place
from mloc_prefect.bridge.states import Mark, Phase
from mloc_prefect.plan.shards import Shard, shard_spec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.bridge.mapping import Step
    from mloc_prefect.bridge.records import TaskRecord

UNKNOWN = "prefect"


def part_record(parent: TaskRecord, part: Mapping[str, Any], at: float) -> TaskRecord:
    """Return the record of one part of `parent`, before anything happened to it.

    Args:
        parent: The whole task, with its document.
        part: `task_id`, `index` and `total`.
        at: When it was heard of, seconds since the epoch.
    """
    shard = Shard(int(part["index"]), int(part["total"]), parent.task_id)
    spec = parent.parsed.get("spec")
    parsed = {**parent.parsed, "spec": shard_spec(spec, shard)} if isinstance(spec, dict) else parent.parsed
    return replace(
        parent,
        task_id=str(part["task_id"]),
        parsed=parsed,
        mark=Mark(1, Phase.PENDING),
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


def steps(record: TaskRecord, facts: Mapping[str, Any], at: float, *, busy: bool) -> tuple[Step, ...]:
    """Return what follows from one fact about a part, in order; nothing for what is not known.

    Args:
        record: The part as it is.
        facts: What was told.
        at: When, seconds since the epoch.
        busy: Whether its worker has other tasks at work.
    """
    what, attempt = facts.get("step"), int(facts.get("attempt") or 1)
    worker = facts.get("worker")
    place = Place(str(worker or UNKNOWN), str(facts.get("protocol") or "ours"), facts.get("flow_run"))
    if what == "waiting":
        return (mapping.waiting(attempt, str(facts.get("reason") or "")),)
    if what == "placed":
        begun = bool(facts.get("begun", place.protocol == "ours"))
        given = mapping.placed(record, attempt, place, at)
        return (given, mapping.started(record, attempt, place, at)) if begun else (given,)
    error = str(facts.get("error") or "failed")
    if what == "failed" and facts.get("final"):
        return (mapping.failed(record, attempt, error, at, busy=busy),)
    if what == "failed":
        due = facts.get("next_retry_at")
        return (mapping.retried(record, attempt, error=error, worker=worker, next_retry_at=due, at=at, busy=busy),)
    return (mapping.done(record, max(attempt, record.mark.attempt), at, busy=busy),) if what == "done" else ()


def last_step(record: TaskRecord, parent: TaskRecord, at: float, *, busy: bool) -> Step:
    """Return how a part ends of which nothing was heard when its whole task has ended."""
    attempt = record.mark.attempt
    if parent.mark.phase is Phase.DONE:
        return mapping.done(record, attempt, at, busy=busy)
    if parent.mark.phase is Phase.CANCELLED:
        return mapping.cancelled(record, attempt, at, busy=busy)
    error = f"not finished: task {parent.task_id}, of which it is a part, has failed"
    return mapping.failed(record, attempt, error, at, busy=busy)
