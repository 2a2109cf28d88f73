"""Records of runs that were not submitted here, or whose records are gone: from Prefect's tags and parameters."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mloc_prefect.bridge.planned import category, planned_records
from mloc_prefect.bridge.records import Submission, TaskRecord
from mloc_prefect.bridge.states import Mark, Phase
from mloc_prefect.errors import MlocError
from mloc_prefect.orchestrate import specs
from mloc_prefect.orchestrate.options import RunOptions
from mloc_prefect.plan import check

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mloc_prefect.bridge.ports import TaskStore
    from mloc_prefect.bridge.runs import RunView, Tags
    from mloc_prefect.plan.model import WorkflowPlan
    from mloc_prefect.settings import MlocSettings

_log = logging.getLogger(__name__)


class Rebuilder:
    """Makes records that are missing; what is there stays as it is.

    Args:
        tasks: Where to.
        settings: For the results root and the number of attempts.
        attended_until: See `Submission`; given by a process that keeps the records of its own run only. The run is then
            not noted: it may be another Prefect's than the bridge's, who would miss it there and take it for deleted.
    """

    def __init__(
        self, tasks: TaskStore, settings: MlocSettings, *, attended_until: Callable[[], float] | None = None
    ) -> None:
        self._tasks, self._settings, self._attended_until = tasks, settings, attended_until

    async def from_root(self, root: RunView, stages: Sequence[RunView] = ()) -> None:
        """Make the records of a submission from its root run.

        Args:
            root: The root run; its parameters have the spec unless it was made from a plan in Python.
            stages: Stage runs; those that the spec does not explain get a record from their tags.
        """
        plan, text = await asyncio.to_thread(self._plan, root)
        submission_id = root.submission_id
        given = root.parameters
        ids = (
            {} if plan is None else RunOptions(settings=self._settings, submission_id=submission_id).ids(plan, root.id)
        )
        submission = Submission(
            submission_id=submission_id,
            raw_yaml=text,
            task_ids=tuple(ids.values()),
            submitted_at=_iso(root.created),
            name=root.name if plan is None else plan.name,
            file=str(given.get("file") or "<submitted>"),
            parameters={str(k): str(v) for k, v in (given.get("parameters") or {}).items()},
            strict=bool(given.get("strict")),
            flow_run=root.id if self._attended_until is None else None,
            attended_until=None if self._attended_until is None else self._attended_until(),
        )
        records: tuple[TaskRecord, ...] = ()
        if plan is not None:
            records = planned_records(
                plan, submission, ids, max_attempts=self._settings.max_retries + 1, submitted_ts=root.created
            )
        unexplained = [s for s in stages if s.tags.task_id and s.tags.task_id not in ids.values()]
        more = tuple(self._from_tags(s.tags, s.name, root.created or s.created) for s in unexplained)
        await self._tasks.create((*records, *more), submission)

    async def from_tags(self, tags: Tags, name: str, at: float) -> None:
        """Make one record of which only the tags of its run are known."""
        await self._tasks.create([self._from_tags(tags, name, at)])

    def _from_tags(self, tags: Tags, name: str, at: float) -> TaskRecord:
        assert tags.task_id is not None
        return TaskRecord(
            task_id=tags.task_id,
            raw_yaml="",
            parsed={},
            mark=Mark(1, Phase.PENDING),
            submitted_at=_iso(at),
            submitted_ts=at,
            last_queue_ts=at,
            max_attempts=self._settings.max_retries + 1,
            graph_node_name=tags.stage if ":" in name else None,
            submission_id=tags.submission_id,
            task_type=tags.task_type,
            category=category(tags.task_type),
            name=name,
        )

    def _plan(self, root: RunView) -> tuple[WorkflowPlan | None, str]:
        given: dict[str, Any] = dict(root.parameters)
        spec = given.get("spec")
        if not isinstance(spec, str):
            return None, ""
        try:
            text = specs.unpack(spec, self._settings.results_root)
        except MlocError as error:
            _log.warning("the spec of run %s cannot be read: %s", root.id, error.message)
            return None, ""
        plan, _ = check(
            text,
            str(given.get("file") or "<submitted>"),
            overrides=tuple(given.get("overrides") or ()),
            params=tuple(given.get("parameters") or ()),
        )
        return plan, text


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()
