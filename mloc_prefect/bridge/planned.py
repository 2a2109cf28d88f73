"""From a plan to the task records that clients see. [protocol 2.1]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mloc_prefect.bridge.records import TaskRecord
from mloc_prefect.bridge.states import Mark, Phase

if TYPE_CHECKING:
    from mloc_prefect.bridge.records import Submission
    from mloc_prefect.plan.model import StagePlan, WorkflowPlan

_TRAINING = frozenset({"sft", "lora_sft", "dpo", "ppo", "grpo"})


def planned_records(
    plan: WorkflowPlan,
    submission: Submission,
    ids: Mapping[str, str],
    *,
    max_attempts: int,
    submitted_ts: float,
    waiting: Mapping[str, str] | None = None,
) -> tuple[TaskRecord, ...]:
    """Return the records of a fresh submission, in the order of the plan.

    Args:
        plan: What will run.
        submission: What it was submitted as.
        ids: Task id of each stage key.
        max_attempts: Attempts in all.
        submitted_ts: Seconds since the epoch; the text form is the submission's.
        waiting: Why a stage that waits for no other cannot start now, by stage key; the others are PENDING.
    """
    reasons = waiting or {}
    return tuple(
        _record(stage, submission, ids, max_attempts, submitted_ts, reasons.get(stage.key)) for stage in plan.stages
    )


def waits_for_others(stage: StagePlan) -> bool:
    """Return whether a stage has dependencies, of which the original then says PENDING, even when they are DONE."""
    return bool(stage.upstream or stage.external)


def category(task_type: str) -> str:
    """Return `inference`, `training` or `other`. [protocol 2.1]."""
    name = task_type.strip().lower()
    if name.startswith("inference"):
        return "inference"
    return "training" if name in _TRAINING else "other"


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
        mark=Mark(1, Phase.WAITING if held else Phase.PENDING),
        submitted_at=submission.submitted_at,
        error=reason if held else None,
        max_attempts=max_attempts,
        graph_node_name=stage.node,
        submission_id=submission.submission_id,
        task_type=stage.task_type,
        category=category(stage.task_type),
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
