"""Compares the records with Prefect's API every few seconds, and repairs what no event reported."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from contextlib import nullcontext
from typing import TYPE_CHECKING

import httpx

from mloc_prefect.bridge.event_sources import STATES, RunEvent
from mloc_prefect.errors import FencedError, StoreError, reason
from mloc_prefect.store.isolation import isolated
from mloc_prefect.store.states import Phase, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mloc_prefect.bridge.prefect_runs import RunReader, RunView
    from mloc_prefect.bridge.projector import Projector
    from mloc_prefect.store.interfaces import TaskStore
    from mloc_prefect.store.records import TaskRecord

_log = logging.getLogger(__name__)

_AT_ONCE = 200  # submissions in one comparison; the others follow in the next ones
OPEN = (TaskStatus.PENDING, TaskStatus.WAITING, TaskStatus.DISPATCHED)
_REST = 20.0  # times as long as the comparison before it took
_LONGEST_REST_SECONDS = 60.0
GRACE_SECONDS = 2.0
"""Changes that are younger may still arrive as an event."""

KEPT_SECONDS = 8.0
"""Age at which an event is surely in Prefect's database (flushed every 5 s)."""

ASK_SECONDS = 20.0
"""Seconds between two reads of the stored events of one running run."""

UNKNOWN_SECONDS = 30.0
"""Seconds between two searches by tags: for runs without records, and stage runs outside of a workflow run."""

CRASH_SECONDS = 120.0
"""Age at which a crashed workflow run that was not restarted counts as ended."""

DELETED = "its run was deleted in Prefect"
LEFT = "the process that ran it (mloc run) is not heard of any more"

REBUILD_SECONDS = 7 * 86400.0
"""How far back runs are searched when the records were lost: as long as Prefect keeps events."""


class Reconciler:
    """Compares records with runs and repairs the records.

    Args:
        tasks: The records.
        projector: Moves them.
        runs: Prefect's API.
        clock: Seconds since the epoch.
        grace: See `GRACE_SECONDS`.
        sleep: Waits for some seconds.
    """

    def __init__(
        self,
        tasks: TaskStore,
        projector: Projector,
        runs: RunReader,
        *,
        clock: Callable[[], float] = time.time,
        grace: float = GRACE_SECONDS,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._tasks, self._projector, self._runs = tasks, projector, runs
        self._clock, self._grace, self._sleep = clock, grace, sleep
        self._asked: dict[str, float] = {}  # run -> when its kept events were read
        self._searched = 0.0
        self._turn = 0

    async def compare_repeatedly(self, every: float) -> None:
        """Compare every `every` seconds until cancelled; after a failure the next comparison catches up.

        With hundreds of open submissions the lists that it reads cost the server more than anything else: the longer
        a comparison takes, the longer it rests.

        Raises:
            FencedError: This bridge is no longer the active one.
        """
        while True:
            began, rest = self._clock(), every
            try:
                await self.compare_once()
                rest = max(every, min(_REST * (self._clock() - began), _LONGEST_REST_SECONDS))
            except FencedError:
                raise
            except (StoreError, httpx.HTTPError) as error:
                _log.warning("could not compare records with Prefect, will retry: %s", reason(error))
            await asyncio.sleep(rest)

    async def rebuild(self, *, quiet: bool) -> None:
        """Make the missing records of all runs of the last days, and bring them up to date.

        Args:
            quiet: Publish nothing: the records were lost, and their messages have been published before.
        """
        workflows = await self._runs.workflow_runs_since(self._clock() - REBUILD_SECONDS)
        missing = [workflow for workflow in workflows if await self._tasks.submission(workflow.submission_id) is None]
        if not missing:
            return
        _log.info("%d submissions have runs in Prefect but no records", len(missing))
        if quiet and any(not workflow.final or self._age(workflow) < KEPT_SECONDS for workflow in missing):
            await self._sleep(KEPT_SECONDS)  # else a later comparison would find and publish these events again
        with self._projector.quiet() if quiet else nullcontext():
            for at in range(0, len(missing), _AT_ONCE):
                await self._rebuild(missing[at : at + _AT_ONCE])

    async def _rebuild(self, workflows: Sequence[RunView]) -> None:
        found = _by_submission(await self._runs.of_submissions([workflow.submission_id for workflow in workflows]))
        stages = [run for runs in found.values() for run in runs if run.tags.task_id]
        for workflow in workflows:
            with isolated(f"run {workflow.id}"):
                await self._projector.create_missing(
                    workflow, [s for s in found[workflow.submission_id] if s.tags.task_id]
                )
        await self._apply([s.id for s in stages if s.tags.stage is not None])
        for stage in stages:
            with isolated(f"run {stage.id}"):
                if stage.final:
                    await self._projector.end_task(stage)
                elif stage.tags.stage is None:
                    await self._projector.apply(_event(stage))
        for workflow in workflows:
            if workflow.final:
                with isolated(f"the end of run {workflow.id}"):
                    await self._projector.end_workflow_run(workflow, crashed=self._age(workflow) > CRASH_SECONDS)

    async def compare_once(self) -> None:
        """Compare all open records once.

        Raises:
            StoreError: The store cannot be reached.
            FencedError: This bridge is no longer the active one.
            httpx.HTTPError: The API does not answer.
        """
        search = self._clock() - self._searched > UNKNOWN_SECONDS
        if search:
            await self._create_unknown(await self._runs.unfinished())
            self._searched = self._clock()
        unfinished: defaultdict[str, list[TaskRecord]] = defaultdict(list)
        for status in OPEN:
            for record in await self._tasks.page(status=status, brief=True):
                if record.submission_id:
                    unfinished[record.submission_id].append(record)
        chosen = self._choose(sorted(unfinished))
        run_ids = [record.flow_run for name in chosen for record in unfinished[name] if record.flow_run]
        runs = {run.id: run for run in await self._runs.find_by_ids(chosen, run_ids)}
        if search:  # by tags, which takes longer the more runs there were
            runs |= {run.id: run for run in await self._runs.of_submissions(chosen)}
        found = _by_submission(list(runs.values()))
        for submission_id in chosen:
            with isolated(f"submission {submission_id}"):
                await self._compare_submission(submission_id, unfinished[submission_id], found[submission_id])
        await self._projector.release_ended_tasks()

    async def finish(self, submission_id: str) -> None:
        """End the open records of a submission whose runs have all ended, without waiting for late events."""
        runs = await self._runs.of_submissions([submission_id])
        stages = [run for run in runs if run.tags.task_id]
        await self._apply_kept_events(stages)
        for stage in stages:
            if stage.final:
                await self._projector.end_task(stage)
        workflow = next((run for run in runs if run.tags.is_workflow_run), None)
        if workflow is not None and workflow.final:
            await self._projector.end_workflow_run(workflow)

    def _choose(self, submissions: list[str]) -> list[str]:
        if len(submissions) <= _AT_ONCE:
            return submissions
        self._turn %= len(submissions)
        turned = submissions[self._turn :] + submissions[: self._turn]
        self._turn += _AT_ONCE
        return turned[:_AT_ONCE]

    async def _create_unknown(self, live: Sequence[RunView]) -> None:
        """Make records of running runs that have none."""
        workflows = [run for run in live if run.tags.is_workflow_run]
        for workflow in workflows:
            if self._age(workflow) >= self._grace and await self._tasks.submission(workflow.submission_id) is None:
                stages = await self._runs.of_submissions([workflow.submission_id])
                with isolated(f"run {workflow.id}"):
                    await self._projector.create_missing(workflow, [s for s in stages if s.tags.task_id])

    async def _compare_submission(
        self, submission_id: str, records: Sequence[TaskRecord], runs: Sequence[RunView]
    ) -> None:
        workflow = next((run for run in runs if run.tags.is_workflow_run), None)
        stages = {run.tags.task_id: run for run in runs if run.tags.task_id}  # the newest of each task
        if workflow is None and not stages:
            await self._fail_without_run(submission_id, records)
            return
        pairs = [(record, stages[record.task_id]) for record in records if record.task_id in stages]
        await self._apply_kept_events([stage for record, stage in pairs if self._is_behind(record, stage)])
        for record, stage in pairs:
            await self._compare_stage(record, stage)
        if workflow is not None and workflow.final and self._age(workflow) > KEPT_SECONDS:
            await self._projector.end_workflow_run(workflow, crashed=self._age(workflow) > CRASH_SECONDS)

    async def _compare_stage(self, record: TaskRecord, stage: RunView) -> None:
        attended, begun = stage.tags.stage is not None, record.mark.phase >= Phase.STARTED
        if self._age(stage) < (self._grace if begun or not attended else KEPT_SECONDS):
            return
        if stage.final:
            await self._projector.end_task(stage)
        elif not attended:  # its state is all there is: apply it like the event
            await self._projector.apply(_event(stage))

    async def _apply_kept_events(self, stages: Sequence[RunView]) -> None:
        """Apply the stored events of the stage runner before the ends of its runs."""
        if not stages:
            return
        now = self._clock()
        self._asked = {run: at for run, at in self._asked.items() if now - at < ASK_SECONDS}
        self._asked |= {stage.id: now for stage in stages}
        await self._apply([stage.id for stage in stages])

    async def _apply(self, run_ids: Sequence[str]) -> None:
        for event in await self._runs.kept_events(run_ids):
            with isolated(str(event)):
                await self._projector.apply(event)

    async def _fail_without_run(self, submission_id: str, records: Sequence[TaskRecord]) -> None:
        """Fail tasks whose run existed and no longer does; tasks that wait for their run are left alone.

        A run in another Prefect cannot be checked: it counts as lost when its process stops marking it as attended.
        """
        submission, now = await self._tasks.submission(submission_id), self._clock()
        if submission is None or (submission.attended_until is not None and now < submission.attended_until):
            return
        if submission.flow_run is not None:
            error = None if await self._runs.get([submission.flow_run]) else DELETED
        else:
            error = LEFT if submission.attended_until is not None else None
        if error is not None:
            for record in records:
                await self._projector.fail_task(record, error, now)

    def _is_behind(self, record: TaskRecord, stage: RunView) -> bool:
        """Return whether the record lacks events of such a run that must be stored by now."""
        if stage.tags.stage is None or self._age(stage) < KEPT_SECONDS:
            return False
        return stage.final or (record.mark.phase < Phase.STARTED and stage.id not in self._recent())

    def _recent(self) -> set[str]:
        now = self._clock()
        return {run for run, at in self._asked.items() if now - at < ASK_SECONDS}

    def _age(self, run: RunView) -> float:
        return self._clock() - run.since


def _event(run: RunView) -> RunEvent:
    """Return the event that put a run into its state."""
    tags = {"mloc", f"mloc-task:{run.tags.task_id}", f"mloc-type:{run.tags.task_type}"}
    if run.tags.submission_id:
        tags.add(f"mloc-submission:{run.tags.submission_id}")
    return RunEvent(
        id=f"{run.id}:{run.state}:{run.since}",
        name=f"{STATES}{run.state}",
        run_id=run.id,
        at=run.since,
        tags=frozenset(tags),
        type=run.type,
        message=run.message,
        run_count=run.run_count,
    )


def _by_submission(runs: Sequence[RunView]) -> defaultdict[str, list[RunView]]:
    found: defaultdict[str, list[RunView]] = defaultdict(list)
    for run in runs:
        found[run.submission_id].append(run)
    return found
