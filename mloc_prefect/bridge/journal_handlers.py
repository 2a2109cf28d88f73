"""Handles one entry of the journal: makes the run of a submission, or cancels runs and tasks.

Everything here may happen twice (a lost answer, a bridge that was killed before it acknowledged): the idempotency key
makes one run of that, and a submission that has begun is not started again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

import httpx

from mloc_prefect.artifacts.layout import task_dir
from mloc_prefect.artifacts.result_guard import commit_posted
from mloc_prefect.cluster.deployments import RUN_WORKFLOW, ensure_deployment
from mloc_prefect.errors import MlocError, StoreError, reason
from mloc_prefect.flow import spec_parameters
from mloc_prefect.prefect_ext.requests import ask
from mloc_prefect.prefect_ext.run_facts import COORDINATOR_QUEUE
from mloc_prefect.store import transitions
from mloc_prefect.store.states import Phase

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient

    from mloc_prefect.bridge.prefect_runs import RunReader, RunView
    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.store.backends import Stores
    from mloc_prefect.store.interfaces import JournalEntry
    from mloc_prefect.store.records import Submission, TaskRecord

_log = logging.getLogger(__name__)

_HOPELESS = frozenset({400, 413, 422})  # the request itself is refused
_WAIT = frozenset({401, 403, 407, 408, 425, 429, 502, 504})  # every request is refused: login, load, proxies
_SHOWN = 500


class JournalHandlers:
    """Handles entries, one try each.

    Args:
        stores: Records.
        client: Prefect's API.
        runs: Reads flow runs from it.
        settings: Pool and results root.
    """

    def __init__(self, stores: Stores, client: PrefectClient, runs: RunReader, settings: MlocSettings) -> None:
        self._stores, self._client, self._runs, self._settings = stores, client, runs, settings
        self._deployment: UUID | None = None

    async def handle_entry(self, entry: JournalEntry) -> None:
        """Do what an entry asks for; every error is raised."""
        try:
            await (self._submit(entry) if entry.kind == "submit" else self._cancel(entry))
        except Exception:
            self._deployment = None  # it may have been deleted in the meantime
            raise

    async def is_outage(self, error: Exception) -> bool:
        """Return whether an error of `handle_entry` means an outage of Redis or Prefect, and not a bad entry.

        Prefect answers 503 to any error of its database, also to one that this entry alone causes.
        """
        if isinstance(error, StoreError):
            return not _refused_one_command(error)
        if isinstance(error, httpx.ProtocolError | httpx.UnsupportedProtocol):
            return not await self._prefect_is_ready()
        if isinstance(error, httpx.TransportError | ConnectionError):
            return True
        if not isinstance(error, httpx.HTTPStatusError):
            return False
        status = error.response.status_code
        if status in _WAIT:
            return True
        return status >= 500 and not await self._prefect_is_ready()

    async def give_up(self, entry: JournalEntry, error: Exception) -> None:
        """Write into the records why an entry is given up: its tasks have failed, or could not be cancelled."""
        why = reason(error)[:_SHOWN]
        records = await self._records_of(entry)
        if entry.kind == "submit":
            await self._fail_all(records, f"could not be started: {why}")
            return
        for record in records:  # a running task continues, and its end is recorded as usual
            if not record.mark.phase.terminal:
                await self._stores.tasks.note(
                    record.task_id, record.mark, {"error": f"could not be cancelled: {why}; cancel it again"}
                )

    async def _records_of(self, entry: JournalEntry) -> Sequence[TaskRecord]:
        if entry.task_id is None:
            return await self._stores.tasks.page(submission_id=entry.submission_id, brief=True)
        return list((await self._stores.tasks.get_many([entry.task_id], brief=True)).values())

    async def _prefect_is_ready(self) -> bool:
        """Return whether Prefect is ready: without its database it answers 500 to everything, as to a bad request."""
        try:
            await ask(self._client, "GET", "/ready")
        except (httpx.HTTPError, ValueError):
            return False
        return True

    # --- submissions --------------------------------------------------------------------------------------------------

    async def _submit(self, entry: JournalEntry) -> None:
        submission = await self._stores.tasks.submission(entry.submission_id)
        if submission is None:
            _log.error("submission %s is in the journal but not in the store", entry.submission_id)
            return
        records = await self._stores.tasks.page(submission_id=entry.submission_id, brief=True)
        begun = submission.flow_run is not None or any(r.flow_run is not None for r in records)
        if begun or submission.cancelled:
            return
        if all(r.mark.phase.terminal for r in records):
            await asyncio.to_thread(self._commit_posted, records)
            return
        deployment = await self._ensured_deployment()
        try:
            run_id = await self._create(submission, deployment)
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in _HOPELESS:
                raise
            await self._fail_all(records, f"Prefect refused its run: {error.response.text[:_SHOWN]}")
        except MlocError as error:
            if isinstance(error, StoreError):
                raise
            await self._fail_all(records, error.message)
        else:
            await self._stores.tasks.dispatched(entry.submission_id, run_id)

    def _commit_posted(self, records: Sequence[TaskRecord]) -> None:
        """Commit the results that clients posted before a run was made, so that there is none now."""
        for record in records:
            if record.mark.phase is Phase.DONE:
                directory = task_dir(self._settings.results_root, record.task_id)
                commit_posted(directory, task_id=record.task_id, name=record.name)

    async def _ensured_deployment(self) -> UUID:
        if self._deployment is None:
            self._deployment = await ensure_deployment(self._client, RUN_WORKFLOW, self._settings.work_pool)
        return self._deployment

    async def _create(self, submission: Submission, deployment: UUID) -> str:
        root = self._settings.results_root
        spec = await asyncio.to_thread(spec_parameters.pack, submission.raw_yaml, root)
        values = await asyncio.to_thread(spec_parameters.pack_values, submission.parameters, root)
        run = await self._client.create_flow_run_from_deployment(
            deployment,
            name=submission.name or None,
            parameters={
                "spec": spec,
                "parameters": values,
                "submission_id": submission.submission_id,
                "file": submission.file,
                **({"strict": True} if submission.strict else {}),
            },
            tags=["mloc", f"mloc-submission:{submission.submission_id}"],
            idempotency_key=submission.submission_id,
            work_queue_name=COORDINATOR_QUEUE,
        )
        return str(run.id)

    async def _fail_all(self, records: Sequence[TaskRecord], error: str) -> None:
        now = time.time()
        for record in records:
            await self._apply_step(record, transitions.failed(record, record.mark.attempt, error, now))

    # --- cancellations ------------------------------------------------------------------------------------------------

    async def _cancel(self, entry: JournalEntry) -> None:
        workflow, stages = await self._find_runs(entry.submission_id)
        if entry.task_id is None:
            stopped = await self._cancel_run(workflow) if workflow is not None else False
            wanted = await self._stores.tasks.page(submission_id=entry.submission_id)
        else:
            stage = stages.get(entry.task_id)
            stopped = await self._cancel_run(stage) if stage is not None else False
            wanted = list((await self._stores.tasks.get_many([entry.task_id])).values())
        now = time.time()
        for record in wanted:
            if not record.mark.phase.terminal and (not stopped or record.mark.phase < Phase.DISPATCHED):
                await self._apply_step(record, transitions.cancelled(record, record.mark.attempt, now))

    async def _find_runs(self, submission_id: str) -> tuple[RunView | None, dict[str | None, RunView]]:
        found = list(await self._runs.of_submissions([submission_id]))
        submission = await self._stores.tasks.submission(submission_id)
        workflow = next((run for run in found if run.tags.is_workflow_run), None)
        if workflow is None and submission is not None and submission.flow_run is not None:
            workflow = (await self._runs.get([submission.flow_run])).get(submission.flow_run)
        return workflow, {run.tags.task_id: run for run in found if run.tags.task_id}

    async def _cancel_run(self, run: RunView) -> bool:
        """Ask Prefect to cancel a run; returns whether the run will report its end."""
        if run.final:
            return False
        if run.type != "CANCELLING":
            state = {"type": "CANCELLING", "name": "Cancelling", "message": "cancelled through MLOC"}
            await ask(self._client, "POST", f"/flow_runs/{run.id}/set_state", {"state": state})
        return True

    async def _apply_step(self, record: TaskRecord, step: transitions.RecordStep) -> None:
        step = transitions.of_task_alone(step)
        await self._stores.tasks.transition(record.task_id, step.mark, step.changes, step.messages, add=step.add)


def is_server_error(error: Exception) -> bool:
    """Return whether Prefect answered with an error of its own, which may be about this request alone or about all."""
    return isinstance(error, httpx.HTTPStatusError) and error.response.is_server_error


def _refused_one_command(error: StoreError) -> bool:
    """Return whether Redis works and only refuses this command, e.g. because a key has another type."""
    from redis.exceptions import ResponseError

    return isinstance(error.__cause__, ResponseError) and str(error.__cause__).startswith(("WRONGTYPE", "ERR "))
