"""What is to be done for one entry of the journal: make the run of a submission, or end what it asks to end.

Everything here may be done twice (a lost answer, a bridge that was killed before it could acknowledge): the idempotency
key makes that one run, and a submission that has begun is not run again.
"""

from __future__ import annotations

import asyncio
import logging
import time
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

_HOPELESS = frozenset({400, 413, 422})  # the answers that mean this very request
_WAIT = frozenset({401, 403, 407, 408, 425, 429, 502, 503, 504})  # those that mean all requests: login, load, proxies
_SHOWN = 500


class EntryWork:
    """Does entries, one try each.

    Args:
        stores: Records.
        client: Prefect's API.
        runs: The same, for reading.
        settings: Pool and results root.
    """

    def __init__(self, stores: Stores, client: PrefectClient, runs: Runs, settings: MlocSettings) -> None:
        self._stores, self._client, self._runs, self._settings = stores, client, runs, settings
        self._deployment: UUID | None = None

    async def do(self, entry: Entry) -> None:
        """Do what an entry asks for; whatever goes wrong is raised."""
        try:
            await (self._submit(entry) if entry.kind == "submit" else self._cancel(entry))
        except Exception:
            self._deployment = None  # it may have been deleted meanwhile
            raise

    async def away(self, error: Exception) -> bool:
        """Return whether an error of `do` means that Redis or Prefect serve nobody, and not that the entry is odd."""
        if isinstance(error, StoreError):
            return not _odd_answer(error)
        if isinstance(error, httpx.ProtocolError | httpx.UnsupportedProtocol):
            return not await self._ready()
        if isinstance(error, httpx.TransportError | ConnectionError):
            return True
        if not isinstance(error, httpx.HTTPStatusError):
            return False
        status = error.response.status_code
        if status in _WAIT:
            return True
        return status >= 500 and not await self._ready()

    async def give_up(self, entry: Entry, error: Exception) -> None:
        """Write into the records why an entry is not tried again: its tasks have failed, or could not be cancelled."""
        why = reason(error)[:_SHOWN]
        records = await self._meant(entry)
        if entry.kind == "submit":
            await self._refused(records, f"could not be started: {why}")
            return
        for record in records:  # what runs goes on, and how it ends is told as ever
            if not record.mark.phase.terminal:
                await self._stores.tasks.note(
                    record.task_id, record.mark, {"error": f"could not be cancelled: {why}; cancel it again"}
                )

    async def _meant(self, entry: Entry) -> Sequence[TaskRecord]:
        if entry.task_id is None:
            return await self._stores.tasks.page(submission_id=entry.submission_id, brief=True)
        return list((await self._stores.tasks.get_many([entry.task_id], brief=True)).values())

    async def _ready(self) -> bool:
        """Ask Prefect whether it serves: without its database it answers 500 to everything, and only here says why."""
        try:
            await ask(self._client, "GET", "/ready")
        except (httpx.HTTPError, ValueError):
            return False
        return True

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
            await self._refused(records, f"Prefect refused its run: {error.response.text[:_SHOWN]}")
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
        root = next((run for run in found if run.tags.root), None)
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
        step = mapping.of_task_alone(step)
        await self._stores.tasks.transition(record.task_id, step.mark, step.changes, step.messages, add=step.add)


def _odd_answer(error: StoreError) -> bool:
    """Return whether Redis serves, and only did not like what it was asked: a record of another type, say."""
    from redis.exceptions import ResponseError

    return isinstance(error.__cause__, ResponseError) and str(error.__cause__).startswith(("WRONGTYPE", "ERR "))
