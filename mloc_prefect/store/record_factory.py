"""Makes the task records of a plan. [protocol 2.1]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mloc_prefect.store.record_views import with_views, without_secrets
from mloc_prefect.store.records import TaskRecord
from mloc_prefect.store.states import Phase, StatusMark
from mloc_prefect.tasks.registry import task_type

if TYPE_CHECKING:
    from mloc_prefect.plan.workflow_plan import StagePlan, WorkflowPlan
    from mloc_prefect.store.records import Submission


def planned_records(
    plan: WorkflowPlan,
    submission: Submission,
    ids: Mapping[str, str],
    *,
    max_attempts: int,
    submitted_ts: float,
    waiting: Mapping[str, str] | None = None,
    overridden: bool = False,
) -> tuple[TaskRecord, ...]:
    """Return the records of a new submission, in the order of the plan.

    Args:
        plan: The plan.
        submission: Its submission, as `masked_submission` returns it.
        ids: Task id of each stage key.
        max_attempts: Total number of attempts.
        submitted_ts: Seconds since the epoch; the submission has the text form.
        waiting: By stage key, why a stage without dependencies cannot start now; the others are PENDING.
        overridden: Whether values were set in the document that are not in its text.
    """
    reasons = waiting or {}
    records = (
        _record(stage, submission, ids, max_attempts, submitted_ts, reasons.get(stage.key)) for stage in plan.stages
    )
    if submission.shown_yaml is None and not overridden:  # what is made from a text without secrets has none
        return tuple(map(without_secrets, records))
    return tuple(with_views(record, submission) for record in records)


def waits_for_others(stage: StagePlan) -> bool:
    """Return whether a stage has dependencies; MLOC then shows PENDING, even when they are DONE."""
    return bool(stage.upstream or stage.external)


def _record(
    stage: StagePlan,
    submission: Submission,
    ids: Mapping[str, str],
    max_attempts: int,
    submitted_ts: float,
    reason: str | None,
) -> TaskRecord:
    held = reason is not None and not waits_for_others(stage)
    return TaskRecord(
        task_id=ids[stage.key],
        raw_yaml=submission.raw_yaml,
        parsed=dict(stage.effective),
        mark=StatusMark(1, Phase.WAITING if held else Phase.PENDING),
        submitted_at=submission.submitted_at,
        error=reason if held else None,
        max_attempts=max_attempts,
        graph_node_name=stage.node,
        submission_id=submission.submission_id,
        task_type=stage.task_type,
        category=task_type(stage.task_type).category,
        submitted_ts=submitted_ts,
        last_queue_ts=submitted_ts,
        load=_load(stage.effective),
        depends_on=(*(ids[key] for key in stage.depends_on), *stage.external),
        name=stage.name,
    )


def _load(effective: Mapping[str, Any]) -> int:
    here: Any = effective
    for name in ("spec", "resources", "estimatedLoad"):
        here = here.get(name) if isinstance(here, Mapping) else None
    return here if isinstance(here, int) and not isinstance(here, bool) else 0
