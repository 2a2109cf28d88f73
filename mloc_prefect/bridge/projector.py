"""Keeps records in step with runs: applies events and views of flow runs to records, by `store.transitions`."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mloc_prefect.bridge import shard_records
from mloc_prefect.bridge.assignments import Assignments
from mloc_prefect.bridge.prefect_runs import RunTags
from mloc_prefect.plan.shard_ranges import MULTI
from mloc_prefect.prefect_ext.state_reasons import StateCode
from mloc_prefect.store import transitions
from mloc_prefect.store.states import Phase, TaskStatus
from mloc_prefect.store.transitions import AttemptLocation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mloc_prefect.bridge.event_sources import RunEvent
    from mloc_prefect.bridge.prefect_runs import RunReader, RunView
    from mloc_prefect.bridge.rebuild import Rebuilder
    from mloc_prefect.store.backends import Stores
    from mloc_prefect.store.interfaces import Fence
    from mloc_prefect.store.records import TaskRecord
    from mloc_prefect.store.transitions import RecordStep

_log = logging.getLogger(__name__)

NO_WORKER = "prefect"
"""Worker of a run without our stage runner: Prefect's events do not name its worker."""

BY_HAND = "set to Completed in Prefect by hand, there is no result"
LATE = "no worker has taken its run yet"


class Projector:
    """Moves records.

    Args:
        stores: The records.
        runs: Prefect's API.
        rebuilder: Makes missing records.
        fence: Returns the lease of the active bridge, or None without one.
    """

    def __init__(
        self, stores: Stores, runs: RunReader, rebuilder: Rebuilder, fence: Callable[[], Fence | None] = lambda: None
    ) -> None:
        self._tasks, self._runs = stores.tasks, runs
        self._rebuilder, self._fence = rebuilder, fence
        self._assignments = Assignments(stores)
        self._quiet = False

    async def load(self) -> None:
        """Read from the records which worker has which tasks."""
        await self._assignments.load()

    async def release_ended_tasks(self) -> None:
        """Release workers from tasks that have ended without an event."""
        await self._assignments.release_ended()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Move records without messages inside the block; nothing else may use this projector during it."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    # --- events -------------------------------------------------------------------------------------------------------

    async def apply(self, event: RunEvent) -> None:
        """Apply an event that is not the end of a run.

        Raises:
            StoreError: The store cannot be reached.
            FencedError: This bridge is no longer the active one.
            httpx.HTTPError: The API is needed and does not answer.
        """
        tags = RunTags.of(event.tags)
        if tags.is_workflow_run:
            await self._apply_workflow_run(event, tags)
            return
        record = await self._open_record(await self._record(event.run_id, tags, event.at))
        if record is None:
            return
        if event.from_stage_runner:
            await self._apply_stage_event(record, event)
        elif tags.stage is None:
            await self._apply_state(record, event)

    async def _apply_stage_event(self, record: TaskRecord, event: RunEvent) -> None:
        """Apply an event of our stage runner."""
        facts, what = event.facts, event.state
        attempt = int(facts.get("attempt") or 1)
        location = AttemptLocation(
            str(facts.get("worker") or NO_WORKER), str(facts.get("protocol") or "ours"), event.run_id
        )
        if what == "waiting":
            await self._apply_waiting(record, transitions.waiting(attempt, str(facts.get("reason") or "")))
        elif what == "placed":
            if await self._apply_step(record, transitions.placed(record, attempt, location, event.at)) is None:
                await self._note_new_worker(record, attempt, location)
        elif what == "started":
            await self._apply_step(record, transitions.started(record, attempt, location, event.at))
        elif what == "shard":
            await self._apply_shard(record, facts, event.at)
        elif what == "failed" and not facts.get("final"):  # the last failure comes as the state of the run
            step = transitions.retried(
                record,
                attempt,
                error=str(facts.get("error") or "failed"),
                worker=facts.get("worker"),
                next_retry_at=facts.get("next_retry_at"),
                at=event.at,
                busy=self._busy(record),
            )
            await self._apply_step(record, step)

    async def _note_new_worker(self, record: TaskRecord, attempt: int, location: AttemptLocation) -> None:
        """Store the new worker of an attempt that continues there, because its MLOC worker was lost."""
        if record.mark.attempt == attempt and record.protocol == location.protocol == transitions.ORIGINAL:
            changes = {"assigned_worker": location.worker, "last_failed_worker": record.assigned_worker}
            if location.worker != record.assigned_worker and not record.mark.phase.terminal:
                await self._tasks.note(record.task_id, record.mark, changes)

    async def _apply_shard(self, parent: TaskRecord, facts: Mapping[str, Any], at: float) -> None:
        """Apply an event of our stage runner about one shard of a task."""
        part = facts["part"]
        record = await self._tasks.get(part["task_id"])
        if record is None:
            await self._tasks.create([shard_records.shard_record(parent, part, at)])
            record = await self._tasks.get(part["task_id"])
        record = await self._open_record(record)
        if record is None:
            return
        facts_of_attempt = {**facts, "attempt": facts.get("part_attempt")}
        for step in shard_records.shard_steps(record, facts_of_attempt, at, busy=self._busy(record)):
            moved = await self._apply_step(record, step)
            if moved is None and step.mark.phase is Phase.WAITING:
                await self._tasks.note(record.task_id, step.mark, step.changes)
            record = replace(moved, parsed=record.parsed, raw_yaml=record.raw_yaml) if moved else record

    async def _end_shards(self, parent: TaskRecord, at: float) -> None:
        """End the shards of a task that has ended."""
        if MULTI not in {parent.assigned_worker, parent.last_failed_worker} or parent.submission_id is None:
            return
        for record in await self._records_of(parent.submission_id):
            if record.parent_task_id == parent.task_id and not record.mark.phase.terminal:
                await self._apply_step(record, shard_records.final_step(record, parent, at, busy=self._busy(record)))

    async def _apply_state(self, record: TaskRecord, event: RunEvent) -> None:
        """Apply the state of a run without our stage runner."""
        attempt = max(record.mark.attempt, event.run_count, 1)
        location = AttemptLocation(NO_WORKER, flow_run=event.run_id)
        if event.type == "PENDING":
            await self._apply_step(record, transitions.placed(record, attempt, location, event.at))
        elif event.type == "RUNNING":
            await self._apply_step(record, transitions.started(record, attempt, location, event.at))
        elif event.state == "AwaitingRetry":
            step = transitions.retried(
                record,
                max(event.run_count, 1),
                error=event.message or "failed",
                worker=None,
                next_retry_at=None,
                at=event.at,
                busy=self._busy(record),
            )
            await self._apply_step(record, step)
        elif event.state == "Late":
            await self._apply_waiting(record, transitions.waiting(attempt, LATE))

    # --- ends ---------------------------------------------------------------------------------------------------------

    async def end_task(self, run: RunView, record: TaskRecord | None = None) -> None:
        """Apply the end of a stage run, as the API shows it; raises like `apply`."""
        if record is None:
            record = await self._record(run.id, run.tags, run.since, run.name)
        record = await self._open_record(record)
        if record is None:
            return
        attempt, busy = max(record.mark.attempt, run.attempt), self._busy(record)
        if run.type == "COMPLETED":
            if run.tags.stage is not None and run.code is not StateCode.COMMITTED:
                step = transitions.failed(record, attempt, BY_HAND, run.since, busy=busy)
            else:
                step = transitions.done(record, attempt, run.since, busy=busy)
        elif run.type == "CANCELLED":
            step = transitions.cancelled(record, attempt, run.since, busy=busy)
        elif run.type == "CRASHED" and run.tags.stage is not None:
            await self._apply_crash(record, run, attempt)
            return
        else:
            error = run.message or f"ended as {run.state}"
            if run.code is StateCode.NOT_RUN:
                error = await self._dependency_that_ended(record) or error
            step = transitions.failed(record, attempt, error, run.since, busy=busy)
        await self._apply_step(record, step)

    async def end_workflow_run(self, workflow: RunView, *, crashed: bool = False) -> None:
        """Apply the end of a workflow run: tasks that it left open end with it.

        Args:
            workflow: The run.
            crashed: Whether a crash counts as the end; otherwise the run may still be restarted.
        """
        if workflow.type == "CRASHED" and not crashed:
            return
        unfinished = [r for r in await self._records_of(workflow.submission_id) if not r.mark.phase.terminal]
        if not unfinished:
            return
        stages = {s.tags.task_id: s for s in await self._runs.of_submissions([workflow.submission_id])}
        for record in unfinished:
            stage = stages.get(record.task_id)
            if stage is not None and stage.final and stage.type != "CRASHED":
                await self.end_task(stage, record)
            else:
                await self.end_with_run(workflow, record)

    async def end_with_run(self, workflow: RunView, record: TaskRecord) -> None:
        """End a task as its workflow run ended."""
        attempt, busy = record.mark.attempt, self._busy(record)
        if workflow.type == "CANCELLED":
            step = transitions.cancelled(record, attempt, workflow.since, busy=busy)
        else:
            error = workflow.message or f"its run ended as {workflow.state}"
            step = transitions.failed(record, attempt, error, workflow.since, busy=busy)
        await self._apply_step(record, step)

    async def fail_task(self, record: TaskRecord, error: str, at: float) -> None:
        """Fail a task whose run no longer exists."""
        await self._apply_step(
            record, transitions.failed(record, record.mark.attempt, error, at, busy=self._busy(record))
        )

    async def _apply_crash(self, record: TaskRecord, run: RunView, attempt: int) -> None:
        """Requeue a stage whose process ended: only the end of its workflow run decides whether it continues."""
        continues_elsewhere = record.flow_run not in {None, run.id}
        if record.assigned_worker is None or continues_elsewhere:
            return
        error = f"crashed: {run.message or 'its process ended'}"
        step = transitions.retried(
            record, attempt, error=error, worker=None, next_retry_at=None, at=run.since, busy=self._busy(record)
        )
        await self._apply_step(record, step)

    async def _dependency_that_ended(self, record: TaskRecord) -> str | None:
        """Name the dependency that kept a task from running, as MLOC does. [protocol 2.2, transition 6]."""
        for above in (await self._tasks.get_many(record.depends_on, brief=True)).values():
            if above.status in {TaskStatus.FAILED, TaskStatus.CANCELLED}:
                how = "failed" if above.status is TaskStatus.FAILED else "was cancelled"
                return f"Dependency {above.task_id} {how}"
        return None

    # --- records ------------------------------------------------------------------------------------------------------

    async def create_missing(self, workflow: RunView, stages: Sequence[RunView]) -> None:
        """Make the missing records of a submission."""
        await self._rebuilder.from_workflow_run(workflow, stages)

    async def _apply_workflow_run(self, event: RunEvent, tags: RunTags) -> None:
        if event.state == "Late" and tags.submission_id:
            for record in await self._records_of(tags.submission_id):
                if record.mark.phase is Phase.PENDING and not record.depends_on:
                    await self._apply_waiting(record, transitions.waiting(record.mark.attempt, LATE))
        if event.state == "Running":
            await self._create_from_run(event.run_id, tags)

    async def _create_from_run(self, run_id: str, tags: RunTags) -> None:
        if await self._tasks.submission(tags.submission_id or run_id):
            return
        workflow = (await self._runs.get([run_id])).get(run_id)
        if workflow is not None and not await self._tasks.submission(workflow.submission_id):
            await self._rebuilder.from_workflow_run(workflow)

    async def _record(self, run_id: str, tags: RunTags, at: float, name: str = "") -> TaskRecord | None:
        if tags.task_id is None:
            return None
        record = await self._tasks.get(tags.task_id)
        if record is not None:
            return record
        found = await self._runs.of_submissions([tags.submission_id]) if tags.submission_id else ()
        workflow = next((r for r in found if r.tags.is_workflow_run), None)
        # A workflow run that was not submitted gets its tag only after it has begun.
        if workflow is None and tags.submission_id:
            workflow = (await self._runs.get([tags.submission_id])).get(tags.submission_id)
        if workflow is not None:
            await self._rebuilder.from_workflow_run(workflow, [r for r in found if r.tags.task_id])
        record = await self._tasks.get(tags.task_id)
        if record is None:
            name = name or next((r.name for r in found if r.id == run_id), tags.stage or "")
            await self._rebuilder.from_tags(tags, name, at)
            record = await self._tasks.get(tags.task_id)
        return record

    async def _open_record(self, record: TaskRecord | None) -> TaskRecord | None:
        """Return a record that is still open; clean up after one that was ended from outside (a posted result)."""
        if record is not None and record.mark.phase.terminal:
            await self._assignments.release_task(record, publish=not self._quiet)
            await self._end_shards(record, record.finished_ts or record.submitted_ts)
            return None
        return record

    async def _records_of(self, submission_id: str) -> Sequence[TaskRecord]:
        return await self._tasks.page(submission_id=submission_id, brief=True)

    async def _apply_waiting(self, record: TaskRecord, step: RecordStep) -> None:
        if await self._apply_step(record, step) is None:
            await self._tasks.note(record.task_id, step.mark, step.changes)  # it already waits: only the reason changes

    async def _apply_step(self, record: TaskRecord, step: RecordStep) -> TaskRecord | None:
        moved = await self._tasks.transition(
            record.task_id,
            step.mark,
            step.changes,
            () if self._quiet else step.messages,
            add={} if self._quiet else step.add,
            fence=self._fence(),
        )
        if moved is not None:
            _log.debug("%s is %s", record.task_id, moved.mark)
            await self._assignments.follow_step(record, moved, publish=not self._quiet)
            if moved.mark.phase.terminal:
                await self._end_shards(moved, moved.finished_ts or moved.submitted_ts)
        return moved

    def _busy(self, record: TaskRecord) -> bool:
        """Return whether the worker of a record has other tasks."""
        return self._assignments.has_other_tasks(record)
