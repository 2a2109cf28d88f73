"""Keeps records in step with runs: takes events and views of flow runs, and moves records by `mapping`."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mloc_prefect.bridge import mapping, shards
from mloc_prefect.bridge.at_work import AtWork
from mloc_prefect.bridge.mapping import Place
from mloc_prefect.bridge.runs import Tags
from mloc_prefect.bridge.states import Phase, TaskStatus
from mloc_prefect.orchestrate.tell import COMMITTED
from mloc_prefect.plan.shards import MULTI

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mloc_prefect.bridge.events import RunEvent
    from mloc_prefect.bridge.mapping import Step
    from mloc_prefect.bridge.ports import Fence
    from mloc_prefect.bridge.rebuild import Rebuilder
    from mloc_prefect.bridge.records import TaskRecord
    from mloc_prefect.bridge.runs import Runs, RunView
    from mloc_prefect.bridge.stores import Stores

_log = logging.getLogger(__name__)

NO_WORKER = "prefect"
"""Worker of a run that our stage runner does not attend: Prefect does not say in events who has it."""

BY_HAND = "set to Completed in Prefect by hand, there is no result"
LATE = "no worker has taken its run yet"
NOT_RUN = "not run:"


class Keeper:
    """Moves records.

    Args:
        stores: Where they are.
        runs: Prefect's API.
        rebuilder: Makes records that are missing.
        fence: The lease under which this bridge is active, or None where there is none.
    """

    def __init__(
        self, stores: Stores, runs: Runs, rebuilder: Rebuilder, fence: Callable[[], Fence | None] = lambda: None
    ) -> None:
        self._tasks, self._runs = stores.tasks, runs
        self._rebuilder, self._fence = rebuilder, fence
        self._at_work = AtWork(stores)
        self._quiet = False

    async def load(self) -> None:
        """Learn from the records which worker has which tasks."""
        await self._at_work.load()

    async def compare_workers(self) -> None:
        """Let workers go of tasks that have ended and of whose runs no event came."""
        await self._at_work.compare()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Move records without messages for the length of the block; nothing else may use this keeper meanwhile."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    # --- events -------------------------------------------------------------------------------------------------------

    async def apply(self, event: RunEvent) -> None:
        """Do what follows from an event that is not the end of a run.

        Raises:
            StoreError: The store cannot be reached.
            FencedError: This bridge is not the active one any more.
            httpx.HTTPError: The API is needed and does not answer.
        """
        tags = Tags.of(event.tags)
        if tags.root:
            await self._root(event, tags)
            return
        record = await self._unended(await self._record(event.run_id, tags, event.at))
        if record is None:
            return
        if event.told:
            await self._told(record, event)
        elif tags.stage is None:
            await self._unattended(record, event)

    async def _told(self, record: TaskRecord, event: RunEvent) -> None:
        """Apply what our stage runner says."""
        facts, what = event.facts, event.state
        attempt = int(facts.get("attempt") or 1)
        place = Place(str(facts.get("worker") or NO_WORKER), str(facts.get("protocol") or "ours"), event.run_id)
        if what == "waiting":
            await self._wait(record, mapping.waiting(attempt, str(facts.get("reason") or "")))
        elif what == "placed":
            if await self._take(record, mapping.placed(record, attempt, place, event.at)) is None:
                await self._move(record, attempt, place)
        elif what == "started":
            await self._take(record, mapping.started(record, attempt, place, event.at))
        elif what == "shard":
            await self._part(record, facts, event.at)
        elif what == "failed" and not facts.get("final"):  # the last failure comes as the state of the run
            step = mapping.retried(
                record,
                attempt,
                error=str(facts.get("error") or "failed"),
                worker=facts.get("worker"),
                next_retry_at=facts.get("next_retry_at"),
                at=event.at,
                busy=self._busy(record),
            )
            await self._take(record, step)

    async def _move(self, record: TaskRecord, attempt: int, place: Place) -> None:
        """Note another worker of an attempt that goes on there: one of the original protocol has vanished."""
        if record.mark.attempt == attempt and record.protocol == place.protocol == mapping.ORIGINAL:
            changes = {"assigned_worker": place.worker, "last_failed_worker": record.assigned_worker}
            if place.worker != record.assigned_worker and not record.mark.phase.terminal:
                await self._tasks.note(record.task_id, record.mark, changes)

    async def _part(self, parent: TaskRecord, facts: Mapping[str, Any], at: float) -> None:
        """Apply what our stage runner says of one part of a divided task."""
        part = facts["part"]
        record = await self._tasks.get(part["task_id"])
        if record is None:
            await self._tasks.create([shards.part_record(parent, part, at)])
            record = await self._tasks.get(part["task_id"])
        record = await self._unended(record)
        if record is None:
            return
        told = {**facts, "attempt": facts.get("part_attempt")}
        for step in shards.steps(record, told, at, busy=self._busy(record)):
            moved = await self._take(record, step)
            if moved is None and step.mark.phase is Phase.WAITING:
                await self._tasks.note(record.task_id, step.mark, step.changes)
            record = replace(moved, parsed=record.parsed, raw_yaml=record.raw_yaml) if moved else record

    async def _end_parts(self, parent: TaskRecord, at: float) -> None:
        """End the parts of a divided task that has ended."""
        if MULTI not in {parent.assigned_worker, parent.last_failed_worker} or parent.submission_id is None:
            return
        for record in await self._submission(parent.submission_id):
            if record.parent_task_id == parent.task_id and not record.mark.phase.terminal:
                await self._take(record, shards.last_step(record, parent, at, busy=self._busy(record)))

    async def _unattended(self, record: TaskRecord, event: RunEvent) -> None:
        """Apply a state of a run without our stage runner."""
        attempt = max(record.mark.attempt, event.run_count, 1)
        place = Place(NO_WORKER, flow_run=event.run_id)
        if event.type == "PENDING":
            await self._take(record, mapping.placed(record, attempt, place, event.at))
        elif event.type == "RUNNING":
            await self._take(record, mapping.started(record, attempt, place, event.at))
        elif event.state == "AwaitingRetry":
            step = mapping.retried(
                record,
                max(event.run_count, 1),
                error=event.message or "failed",
                worker=None,
                next_retry_at=None,
                at=event.at,
                busy=self._busy(record),
            )
            await self._take(record, step)
        elif event.state == "Late":
            await self._wait(record, mapping.waiting(attempt, LATE))

    # --- ends ---------------------------------------------------------------------------------------------------------

    async def end(self, run: RunView, record: TaskRecord | None = None) -> None:
        """Do what follows from a stage run that has ended, as the API shows it; see `apply`."""
        if record is None:
            record = await self._record(run.id, run.tags, run.since, run.name)
        record = await self._unended(record)
        if record is None:
            return
        attempt, busy = max(record.mark.attempt, run.attempt), self._busy(record)
        if run.type == "COMPLETED":
            if run.tags.stage is not None and not run.message.startswith(COMMITTED):
                step = mapping.failed(record, attempt, BY_HAND, run.since, busy=busy)
            else:
                step = mapping.done(record, attempt, run.since, busy=busy)
        elif run.type == "CANCELLED":
            step = mapping.cancelled(record, attempt, run.since, busy=busy)
        elif run.type == "CRASHED" and run.tags.stage is not None:
            await self._crashed(record, run, attempt)
            return
        else:
            error = await self._reason(record, run.message or f"ended as {run.state}")
            step = mapping.failed(record, attempt, error, run.since, busy=busy)
        await self._take(record, step)

    async def end_root(self, root: RunView, *, crashed: bool = False) -> None:
        """Do what follows from a root run that has ended: tasks that it left behind end with it.

        Args:
            root: The run.
            crashed: Whether a crash is the end too; else it is waited for that somebody starts it again.
        """
        if root.type == "CRASHED" and not crashed:
            return
        open_ones = [r for r in await self._submission(root.submission_id) if not r.mark.phase.terminal]
        if not open_ones:
            return
        stages = {s.tags.task_id: s for s in await self._runs.of_submissions([root.submission_id])}
        for record in open_ones:
            stage = stages.get(record.task_id)
            if stage is not None and stage.final and stage.type != "CRASHED":
                await self.end(stage, record)
            else:
                await self.end_with(root, record)

    async def end_with(self, root: RunView, record: TaskRecord) -> None:
        """End a task as its root run ended."""
        attempt, busy = record.mark.attempt, self._busy(record)
        if root.type == "CANCELLED":
            step = mapping.cancelled(record, attempt, root.since, busy=busy)
        else:
            error = root.message or f"its run ended as {root.state}"
            step = mapping.failed(record, attempt, error, root.since, busy=busy)
        await self._take(record, step)

    async def lost(self, record: TaskRecord, error: str, at: float) -> None:
        """Fail a task whose run is gone."""
        await self._take(record, mapping.failed(record, record.mark.attempt, error, at, busy=self._busy(record)))

    async def _crashed(self, record: TaskRecord, run: RunView, attempt: int) -> None:
        """A stage whose process ended goes on when its root run is started again; that alone decides."""
        if record.assigned_worker is None or record.flow_run not in {None, run.id}:  # it goes on in another run already
            return
        error = f"crashed: {run.message or 'its process ended'}"
        step = mapping.retried(
            record, attempt, error=error, worker=None, next_retry_at=None, at=run.since, busy=self._busy(record)
        )
        await self._take(record, step)

    async def _reason(self, record: TaskRecord, message: str) -> str:
        """Name the dependency that kept a task from running, as MLOC does. [protocol 2.2, 6]."""
        if not message.startswith(NOT_RUN):
            return message
        for above in (await self._tasks.get_many(record.depends_on, brief=True)).values():
            if above.status in {TaskStatus.FAILED, TaskStatus.CANCELLED}:
                how = "failed" if above.status is TaskStatus.FAILED else "was cancelled"
                return f"Dependency {above.task_id} {how}"
        return message

    # --- records ------------------------------------------------------------------------------------------------------

    async def know(self, root: RunView, stages: Sequence[RunView]) -> None:
        """Make the records of a submission that are missing."""
        await self._rebuilder.from_root(root, stages)

    async def _root(self, event: RunEvent, tags: Tags) -> None:
        if event.state == "Late" and tags.submission_id:
            for record in await self._submission(tags.submission_id):
                if record.mark.phase is Phase.PENDING and not record.depends_on:
                    await self._wait(record, mapping.waiting(record.mark.attempt, LATE))
        if event.state == "Running":
            await self._know_root(event.run_id, tags)

    async def _know_root(self, run_id: str, tags: Tags) -> None:
        if await self._tasks.submission(tags.submission_id or run_id):
            return
        root = (await self._runs.get([run_id])).get(run_id)
        if root is not None and not await self._tasks.submission(root.submission_id):
            await self._rebuilder.from_root(root)

    async def _record(self, run_id: str, tags: Tags, at: float, name: str = "") -> TaskRecord | None:
        if tags.task_id is None:
            return None
        record = await self._tasks.get(tags.task_id)
        if record is not None:
            return record
        found = await self._runs.of_submissions([tags.submission_id]) if tags.submission_id else ()
        root = next((r for r in found if r.tags.root), None)
        if root is None and tags.submission_id:  # a root that was not submitted gets its tag after it has begun
            root = (await self._runs.get([tags.submission_id])).get(tags.submission_id)
        if root is not None:
            await self._rebuilder.from_root(root, [r for r in found if r.tags.task_id])
        record = await self._tasks.get(tags.task_id)
        if record is None:
            name = name or next((r.name for r in found if r.id == run_id), tags.stage or "")
            await self._rebuilder.from_tags(tags, name, at)
            record = await self._tasks.get(tags.task_id)
        return record

    async def _unended(self, record: TaskRecord | None) -> TaskRecord | None:
        """Return a record that has not ended; after one that others have ended (a posted result), do what is left."""
        if record is not None and record.mark.phase.terminal:
            await self._at_work.ended(record, tell=not self._quiet)
            await self._end_parts(record, record.finished_ts or record.submitted_ts)
            return None
        return record

    async def _submission(self, submission_id: str) -> Sequence[TaskRecord]:
        return await self._tasks.page(submission_id=submission_id, brief=True)

    async def _wait(self, record: TaskRecord, step: Step) -> None:
        if await self._take(record, step) is None:
            await self._tasks.note(record.task_id, step.mark, step.changes)  # the same wait for another reason

    async def _take(self, record: TaskRecord, step: Step) -> TaskRecord | None:
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
            await self._at_work.moved(record, moved, tell=not self._quiet)
            if moved.mark.phase.terminal:
                await self._end_parts(moved, moved.finished_ts or moved.submitted_ts)
        return moved

    def _busy(self, record: TaskRecord) -> bool:
        """Return whether the worker of a record has other tasks too."""
        return self._at_work.busy(record)
