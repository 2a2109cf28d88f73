"""Makes missing records of runs, from their tags and parameters in Prefect."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mloc_prefect.errors import MlocError
from mloc_prefect.flow import spec_parameters
from mloc_prefect.flow.options import RunOptions
from mloc_prefect.plan import check
from mloc_prefect.store.record_factory import planned_records
from mloc_prefect.store.record_views import masked_submission
from mloc_prefect.store.records import Submission, TaskRecord
from mloc_prefect.store.states import Phase, StatusMark
from mloc_prefect.tasks.registry import task_type

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mloc_prefect.bridge.prefect_runs import RunTags, RunView
    from mloc_prefect.plan.workflow_plan import WorkflowPlan
    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.store.interfaces import TaskStore

_log = logging.getLogger(__name__)


class Rebuilder:
    """Makes missing records; existing ones stay as they are.

    Args:
        tasks: Store of the records.
        settings: For the results root and the number of attempts.
        attended_until: See `Submission`; given by a process that keeps only the records of its own run. The id of the
            flow run is then not stored: the run may be in another Prefect than the bridge's, and the bridge would
            take it for deleted.
    """

    def __init__(
        self, tasks: TaskStore, settings: MlocSettings, *, attended_until: Callable[[], float] | None = None
    ) -> None:
        self._tasks, self._settings, self._attended_until = tasks, settings, attended_until

    async def from_workflow_run(self, workflow: RunView, stages: Sequence[RunView] = ()) -> None:
        """Make the records of a submission from its workflow run.

        Args:
            workflow: The workflow run; its parameters have the spec unless it was made from a plan in Python.
            stages: Stage runs; those that are not in the spec get a record from their tags.
        """
        plan, text, values = await asyncio.to_thread(self._plan, workflow)
        submission_id = workflow.submission_id
        given = workflow.parameters
        options = RunOptions(settings=self._settings, submission_id=submission_id)
        ids = {} if plan is None else options.ids(plan, workflow.id)

        unmasked = Submission(
            submission_id=submission_id,
            raw_yaml=text,
            task_ids=tuple(ids.values()),
            submitted_at=_iso(workflow.created),
            name=workflow.name if plan is None else plan.name,
            file=str(given.get("file") or "<submitted>"),
            parameters=values,
            strict=bool(given.get("strict")),
            flow_run=workflow.id if self._attended_until is None else None,
            attended_until=None if self._attended_until is None else self._attended_until(),
        )
        submission = await asyncio.to_thread(masked_submission, unmasked)
        records: tuple[TaskRecord, ...] = ()
        if plan is not None:
            records = planned_records(
                plan,
                submission,
                ids,
                max_attempts=self._settings.max_retries + 1,
                submitted_ts=workflow.created,
                overridden=bool(given.get("overrides")),
            )
        unexplained = [s for s in stages if s.tags.task_id and s.tags.task_id not in ids.values()]
        more = tuple(self._from_tags(s.tags, s.name, workflow.created or s.created) for s in unexplained)
        await self._tasks.create((*records, *more), submission)

    async def from_tags(self, tags: RunTags, name: str, at: float) -> None:
        """Make one record from the tags of its run, without a spec."""
        await self._tasks.create([self._from_tags(tags, name, at)])

    def _from_tags(self, tags: RunTags, name: str, at: float) -> TaskRecord:
        assert tags.task_id is not None
        return TaskRecord(
            task_id=tags.task_id,
            raw_yaml="",
            parsed={},
            mark=StatusMark(1, Phase.PENDING),
            submitted_at=_iso(at),
            submitted_ts=at,
            last_queue_ts=at,
            max_attempts=self._settings.max_retries + 1,
            graph_node_name=tags.stage if ":" in name else None,
            submission_id=tags.submission_id,
            task_type=tags.task_type,
            category=task_type(tags.task_type).category,
            name=name,
        )

    def _plan(self, workflow: RunView) -> tuple[WorkflowPlan | None, str, dict[str, str]]:
        given: dict[str, Any] = dict(workflow.parameters)
        root = self._settings.results_root
        spec, file, given_values = spec_parameters.submitted(given)
        values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given_values.items()}
        if not isinstance(spec, str):
            return None, "", values
        try:
            text = spec_parameters.unpack(spec, root)
            values = spec_parameters.unpack_values(values, root)
            overrides = spec_parameters.unpack_overrides(tuple(given.get("overrides") or ()), root)
        except MlocError as error:
            _log.warning("the spec of run %s cannot be read: %s", workflow.id, error.message)
            return None, "", values
        plan, _ = check(
            text,
            file,
            overrides=overrides,
            params=tuple(values),
            max_bytes=self._settings.max_spec_bytes,
            max_tasks=self._settings.max_tasks,
        )
        return plan, text, values


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()
