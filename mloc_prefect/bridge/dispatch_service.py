"""From the journal to Prefect: each accepted submission becomes one run, each cancellation the end of one.

An entry stays in the journal until Prefect has it. It may be done twice (a lost answer, a bridge that was killed before
it could acknowledge): the idempotency key makes that one run, and a submission that has begun is not run again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from typing import TYPE_CHECKING

import httpx

from mloc_prefect.bridge import mapping
from mloc_prefect.bridge.states import Phase
from mloc_prefect.errors import MlocError, StoreError, reason
from mloc_prefect.orchestrate import specs
from mloc_prefect.orchestrate.api import ask
from mloc_prefect.orchestrate.deployments import COORDINATOR_QUEUE, RUN_WORKFLOW, ensure_deployment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient

    from mloc_prefect.bridge.ports import Entry
    from mloc_prefect.bridge.records import Submission, TaskRecord
    from mloc_prefect.bridge.runs import Runs, RunView
    from mloc_prefect.bridge.stores import Stores
    from mloc_prefect.settings import MlocSettings

_log = logging.getLogger(__name__)

AT_ONCE = 8
_BATCH = 32
_BLOCK_MS = 1000
_RECLAIM_SECONDS = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 2.0
_HOPELESS = frozenset({400, 413, 422})  # the answers that mean this very request


class DispatchService:
    """Reads the journal until it is cancelled.

    Args:
        stores: Journal and records.
        client: Prefect's API.
        runs: The same, for reading.
        settings: Pool and results root.
        consumer: Name in the journal's group; the active bridge takes over what its predecessor had taken.
    """

    def __init__(
        self, stores: Stores, client: PrefectClient, runs: Runs, settings: MlocSettings, *, consumer: str = "bridge"
    ) -> None:
        self._stores, self._client, self._runs, self._settings = stores, client, runs, settings
        self._consumer = consumer
        self._deployment: UUID | None = None
        self._room = asyncio.Semaphore(AT_ONCE)
        self._reclaimed = 0.0

    async def run(self) -> None:
        """Dispatch until cancelled; several submissions at once, the entries of one after each other."""
        pause = _FIRST_PAUSE
        while True:
            try:
                entries = await self._read()
                pause = _FIRST_PAUSE
            except StoreError as error:
                _log.warning("the journal waits: %s", error.message)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            await self.dispatch(entries)

    async def dispatch(self, entries: Sequence[Entry]) -> None:
        """Do entries and acknowledge each; returns when all are done, however long Prefect is away."""
        groups: defaultdict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            groups[entry.submission_id].append(entry)
        async with asyncio.TaskGroup() as tasks:
            for group in groups.values():
                tasks.create_task(self._group(group))

    async def _read(self) -> list[Entry]:
        entries = list(await self._stores.journal.read(self._consumer, block_ms=_BLOCK_MS, count=_BATCH))
        if time.monotonic() - self._reclaimed > _RECLAIM_SECONDS:
            self._reclaimed = time.monotonic()
            idle = int(1000 * _RECLAIM_SECONDS)
            known = {entry.id for entry in entries}
            others = await self._stores.journal.reclaim(self._consumer, min_idle_ms=idle, count=_BATCH)
            entries += [entry for entry in others if entry.id not in known]
        return entries

    async def _group(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            async with self._room:
                await self._until_done(entry)

    async def _until_done(self, entry: Entry) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                await (self._submit(entry) if entry.kind == "submit" else self._cancel(entry))
                await self._stores.journal.ack(entry)
            except (httpx.HTTPError, StoreError) as error:
                self._deployment = None  # it may have been deleted meanwhile
                level = logging.WARNING if pause == _FIRST_PAUSE else logging.DEBUG  # once, not at every try
                _log.log(level, "%s of %s waits: %s", entry.kind, entry.submission_id, reason(error))
            except Exception:  # boundary: one odd entry must not stop the others; it stays in the journal
                _log.exception("%s of %s could not be done", entry.kind, entry.submission_id)
            else:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    # --- submissions --------------------------------------------------------------------------------------------------

    async def _submit(self, entry: Entry) -> None:
        submission = await self._stores.tasks.submission(entry.submission_id)
        if submission is None:
            _log.error("submission %s is in the journal and nowhere else", entry.submission_id)
            return
        records = await self._stores.tasks.page(submission_id=entry.submission_id, brief=True)
        begun = submission.flow_run is not None or any(r.flow_run is not None for r in records)
        if begun or submission.cancelled or all(r.mark.phase.terminal for r in records):
            return
        try:
            run_id = await self._create(submission)
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in _HOPELESS:
                raise
            await self._refused(records, f"Prefect refused its run: {error.response.text[:500]}")
        except MlocError as error:
            if isinstance(error, StoreError):
                raise
            await self._refused(records, error.message)
        else:
            await self._stores.tasks.dispatched(entry.submission_id, run_id)

    async def _create(self, submission: Submission) -> str:
        spec = await asyncio.to_thread(specs.pack, submission.raw_yaml, self._settings.results_root)
        if self._deployment is None:
            self._deployment = await ensure_deployment(self._client, RUN_WORKFLOW, self._settings.work_pool)
        run = await self._client.create_flow_run_from_deployment(
            self._deployment,
            name=submission.name or None,
            parameters={
                "spec": spec,
                "parameters": dict(submission.parameters),
                "submission_id": submission.submission_id,
                "file": submission.file,
                **({"strict": True} if submission.strict else {}),
            },
            tags=["mloc", f"mloc-submission:{submission.submission_id}"],
            idempotency_key=submission.submission_id,
            work_queue_name=COORDINATOR_QUEUE,
        )
        return str(run.id)

    async def _refused(self, records: Sequence[TaskRecord], error: str) -> None:
        now = time.time()
        for record in records:
            await self._take(record, mapping.failed(record, record.mark.attempt, error, now))

    # --- cancellations ------------------------------------------------------------------------------------------------

    async def _cancel(self, entry: Entry) -> None:
        root, stages = await self._find(entry.submission_id)
        if entry.task_id is None:
            stopped = await self._stop(root) if root is not None else False
            wanted = await self._stores.tasks.page(submission_id=entry.submission_id)
        else:
            stage = stages.get(entry.task_id)
            stopped = await self._stop(stage) if stage is not None else False
            wanted = list((await self._stores.tasks.get_many([entry.task_id])).values())
        now = time.time()
        for record in wanted:
            if not record.mark.phase.terminal and (not stopped or record.mark.phase < Phase.DISPATCHED):
                await self._take(record, mapping.cancelled(record, record.mark.attempt, now))

    async def _find(self, submission_id: str) -> tuple[RunView | None, dict[str | None, RunView]]:
        found = list(await self._runs.of_submissions([submission_id]))
        submission = await self._stores.tasks.submission(submission_id)
        root = next((run for run in found if run.tags.task_id is None), None)
        if root is None and submission is not None and submission.flow_run is not None:
            root = (await self._runs.get([submission.flow_run])).get(submission.flow_run)
        return root, {run.tags.task_id: run for run in found if run.tags.task_id}

    async def _stop(self, run: RunView) -> bool:
        """Ask for the end of a run; returns whether it will come to one by itself."""
        if run.final:
            return False
        if run.type != "CANCELLING":
            state = {"type": "CANCELLING", "name": "Cancelling", "message": "cancelled through MLOC"}
            await ask(self._client, "POST", f"/flow_runs/{run.id}/set_state", {"state": state})
        return True

    async def _take(self, record: TaskRecord, step: mapping.Step) -> None:
        await self._stores.tasks.transition(record.task_id, step.mark, step.changes, step.messages, add=step.add)
