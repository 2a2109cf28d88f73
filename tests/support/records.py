"""Records and submissions for tests of the store."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mloc_prefect.store.records import Submission, TaskRecord
from mloc_prefect.store.states import Phase, StatusMark

if TYPE_CHECKING:
    from mloc_prefect.store.interfaces import TaskStore

_TIME = "2026-01-01T00:00:00+00:00"


def record(task_id: str = "t1", **changes) -> TaskRecord:
    """Return a record in state PENDING, in its first attempt."""
    base = TaskRecord(
        task_id=task_id,
        raw_yaml="a: 1",
        parsed={"a": 1},
        mark=StatusMark(1, Phase.PENDING),
        submitted_at=_TIME,
        task_type="echo",
        name=f"{changes.pop('base', 'n')}:{task_id}",
        graph_node_name=task_id,
    )
    return replace(base, **changes)


def submission(submission_id: str, *task_ids: str, **changes) -> Submission:
    """Return a submission of these tasks."""
    base = Submission(submission_id=submission_id, raw_yaml="a: 1", task_ids=task_ids, submitted_at=_TIME)
    return replace(base, **changes)


async def submit(store: TaskStore, submission_id: str, *task_ids: str, name: str = "n", **changes) -> Submission:
    """Submit tasks with records in state PENDING; return the result of `submit`."""
    made = submission(submission_id, *task_ids, name=name, **changes)
    return await store.submit(made, [record(entry, submission_id=submission_id, base=name) for entry in task_ids])
