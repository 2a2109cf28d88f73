"""Compares the records with Prefect's API every few seconds, and repairs what no event has told."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from contextlib import nullcontext
from typing import TYPE_CHECKING

import httpx

from mloc_prefect.bridge.events import STATES, RunEvent
from mloc_prefect.bridge.odd import contained
from mloc_prefect.bridge.states import Phase, TaskStatus
from mloc_prefect.errors import FencedError, StoreError, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mloc_prefect.bridge.keeper import Keeper
    from mloc_prefect.bridge.ports import TaskStore
    from mloc_prefect.bridge.records import TaskRecord
    from mloc_prefect.bridge.runs import Runs, RunView

_log = logging.getLogger(__name__)

_sleep = asyncio.sleep
_AT_ONCE = 200  # submissions that one look compares; the others have their turn at the next
OPEN = (TaskStatus.PENDING, TaskStatus.WAITING, TaskStatus.DISPATCHED)
GRACE_SECONDS = 2.0
"""What is younger may still come as an event."""

KEPT_SECONDS = 8.0
"""Until then Prefect has put an event into its database (flushed every 5 s)."""

ASK_SECONDS = 20.0
"""How often kept events of one run at work are read."""

UNKNOWN_SECONDS = 30.0
"""How often runs are looked for by their tags: those without records, and those that are below no root run."""

CRASH_SECONDS = 120.0
"""A crashed root run that nobody started again by then has ended."""

DELETED = "its run was deleted in Prefect"
LEFT = "the process that ran it (mloc run) is not heard of any more"

REBUILD_SECONDS = 7 * 86400.0
"""How far back runs are looked for when the records are gone: as long as Prefect keeps events."""


class Reconciler:
    """Compares and repairs.

    Args:
        tasks: The records.
        keeper: What moves them.
        runs: Prefect's API.
        clock: Seconds since the epoch.
        grace: See `GRACE_SECONDS`.
    """

    def __init__(
        self,
        tasks: TaskStore,
        keeper: Keeper,
        runs: Runs,
        *,
        clock: Callable[[], float] = time.time,
        grace: float = GRACE_SECONDS,
    ) -> None:
        self._tasks, self._keeper, self._runs = tasks, keeper, runs
        self._clock, self._grace = clock, grace
        self._asked: dict[str, float] = {}  # run -> when its kept events were read
        self._searched = 0.0
        self._turn = 0

    async def run(self, every: float) -> None:
        """Look every `every` seconds until cancelled; what fails is done again the next time.

        Raises:
            FencedError: This bridge is not the active one any more.
        """
        while True:
            try:
                await self.look()
            except FencedError:
                raise
            except (StoreError, httpx.HTTPError) as error:
                _log.warning("the comparison with Prefect waits: %s", reason(error))
            await asyncio.sleep(every)

    async def rebuild(self, *, quiet: bool) -> None:
        """Make the records that are missing of all runs of the last days, and bring them up to date.

        Args:
            quiet: The records were lost: what led to them has been published before.
        """
        roots = await self._runs.made_since(self._clock() - REBUILD_SECONDS)
        missing = [root for root in roots if await self._tasks.submission(root.submission_id) is None]
        if not missing:
            return
        _log.info("%d submissions are known to Prefect only", len(missing))
        if quiet and any(not root.final or self._age(root) < KEPT_SECONDS for root in missing):
            await _sleep(KEPT_SECONDS)  # else what was published before would be found later, and published again
        with self._keeper.quiet() if quiet else nullcontext():
            for at in range(0, len(missing), _AT_ONCE):
                await self._rebuild(missing[at : at + _AT_ONCE])

    async def _rebuild(self, roots: Sequence[RunView]) -> None:
        found = _by_submission(await self._runs.of_submissions([root.submission_id for root in roots]))
        stages = [run for runs in found.values() for run in runs if run.tags.task_id]
        for root in roots:
            with contained(f"run {root.id}"):
                await self._keeper.know(root, [s for s in found[root.submission_id] if s.tags.task_id])
        await self._apply([s.id for s in stages if s.tags.stage is not None])
        for stage in stages:
            with contained(f"run {stage.id}"):
                if stage.final:
                    await self._keeper.end(stage)
                elif stage.tags.stage is None:
                    await self._keeper.apply(_event(stage))
        for root in roots:
            if root.final:
                with contained(f"the end of run {root.id}"):
                    await self._keeper.end_root(root, crashed=self._age(root) > CRASH_SECONDS)

    async def look(self) -> None:
        """Compare once.

        Raises:
            StoreError: The store cannot be reached.
            FencedError: This bridge is not the active one any more.
            httpx.HTTPError: The API does not answer.
        """
        search = self._clock() - self._searched > UNKNOWN_SECONDS
        if search:
            await self._unknown(await self._runs.live())
            self._searched = self._clock()
        open_ones: defaultdict[str, list[TaskRecord]] = defaultdict(list)
        for status in OPEN:
            for record in await self._tasks.page(status=status, brief=True):
                if record.submission_id:
                    open_ones[record.submission_id].append(record)
        chosen = self._chosen(sorted(open_ones))
        at_work = [record.flow_run for name in chosen for record in open_ones[name] if record.flow_run]
        runs = {run.id: run for run in await self._runs.at_hand(chosen, at_work)}
        if search:  # by tags, which takes the longer the more runs there were
            runs |= {run.id: run for run in await self._runs.of_submissions(chosen)}
        found = _by_submission(list(runs.values()))
        for submission_id in chosen:
            with contained(f"submission {submission_id}"):
                await self._submission(submission_id, open_ones[submission_id], found[submission_id])
        await self._keeper.compare_workers()

    async def finish(self, submission_id: str) -> None:
        """End what is still open of a submission whose runs have all ended, without waiting for what may still come."""
        runs = await self._runs.of_submissions([submission_id])
        stages = [run for run in runs if run.tags.task_id]
        await self._kept_events(stages)
        for stage in stages:
            if stage.final:
                await self._keeper.end(stage)
        root = next((run for run in runs if run.tags.root), None)
        if root is not None and root.final:
            await self._keeper.end_root(root)

    def _chosen(self, submissions: list[str]) -> list[str]:
        if len(submissions) <= _AT_ONCE:
            return submissions
        self._turn %= len(submissions)
        turned = submissions[self._turn :] + submissions[: self._turn]
        self._turn += _AT_ONCE
        return turned[:_AT_ONCE]

    async def _unknown(self, live: Sequence[RunView]) -> None:
        """Make records of runs that are at work and have none."""
        roots = [run for run in live if run.tags.root]
        for root in roots:
            if self._age(root) >= self._grace and await self._tasks.submission(root.submission_id) is None:
                stages = await self._runs.of_submissions([root.submission_id])
                with contained(f"run {root.id}"):
                    await self._keeper.know(root, [s for s in stages if s.tags.task_id])

    async def _submission(self, submission_id: str, records: Sequence[TaskRecord], runs: Sequence[RunView]) -> None:
        root = next((run for run in runs if run.tags.root), None)
        stages = {run.tags.task_id: run for run in runs if run.tags.task_id}  # the newest of each task
        if root is None and not stages:
            await self._gone(submission_id, records)
            return
        pairs = [(record, stages[record.task_id]) for record in records if record.task_id in stages]
        await self._kept_events([stage for record, stage in pairs if self._lags(record, stage)])
        for record, stage in pairs:
            await self._stage(record, stage)
        if root is not None and root.final and self._age(root) > KEPT_SECONDS:
            await self._keeper.end_root(root, crashed=self._age(root) > CRASH_SECONDS)

    async def _stage(self, record: TaskRecord, stage: RunView) -> None:
        attended, begun = stage.tags.stage is not None, record.mark.phase >= Phase.STARTED
        if self._age(stage) < (self._grace if begun or not attended else KEPT_SECONDS):
            return
        if stage.final:
            await self._keeper.end(stage)
        elif not attended:  # its states say all: as if the event had come
            await self._keeper.apply(_event(stage))

    async def _kept_events(self, stages: Sequence[RunView]) -> None:
        """Apply what the stage runner has told and Prefect has kept, before their ends are looked at."""
        if not stages:
            return
        now = self._clock()
        self._asked = {run: at for run, at in self._asked.items() if now - at < ASK_SECONDS}
        self._asked |= {stage.id: now for stage in stages}
        await self._apply([stage.id for stage in stages])

    async def _apply(self, run_ids: Sequence[str]) -> None:
        for event in await self._runs.facts(run_ids):
            with contained(str(event)):
                await self._keeper.apply(event)

    async def _gone(self, submission_id: str, records: Sequence[TaskRecord]) -> None:
        """Fail tasks whose run was there and is not any more; those that wait for their run are left alone.

        A run of another Prefect than ours cannot be looked at: it counts as gone when nobody says that it goes on.
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
                await self._keeper.lost(record, error, now)

    def _lags(self, record: TaskRecord, stage: RunView) -> bool:
        """Return whether the record is behind what such a run must have told, and that can be read by now."""
        if stage.tags.stage is None or self._age(stage) < KEPT_SECONDS:
            return False
        return stage.final or (record.mark.phase < Phase.STARTED and stage.id not in self._recent())

    def _recent(self) -> set[str]:
        now = self._clock()
        return {run for run, at in self._asked.items() if now - at < ASK_SECONDS}

    def _age(self, run: RunView) -> float:
        return self._clock() - run.since


def _event(run: RunView) -> RunEvent:
    """Return the event that brought a run into its state."""
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
