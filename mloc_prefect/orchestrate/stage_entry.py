"""`run-stage`: one attempt at one stage as a flow run of its own, on whichever worker has leased what it needs."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from mloc_prefect import __version__
from mloc_prefect.errors import MlocError
from mloc_prefect.execution.protocol import ExecutionEvent
from mloc_prefect.orchestrate.dispatch import current_dispatcher, local_dispatcher
from mloc_prefect.orchestrate.jobfile import EventWriter, Outcome, read_job, write_outcome
from mloc_prefect.settings import get_settings

if TYPE_CHECKING:
    from mloc_prefect.execution.protocol import ExecutionResult
    from mloc_prefect.orchestrate.dispatch import StageJob
    from mloc_prefect.settings import MlocSettings


@flow(name="run-stage", version=__version__, persist_result=False)
async def run_stage_attempt(
    attempt_dir: str,
    task: str = "",
    engine: str = "",
    prefer: list[str] | None = None,
    avoid: list[str] | None = None,
) -> Any:
    """Run one attempt whose job lies in `attempt_dir`; its events and its outcome are written there too.

    Args:
        attempt_dir: Absolute directory of the attempt below the shared results root.
        task: Id of the task, for people.
        engine: What has to be loaded for it; runs with the same one can share a warm process.
        prefer: Workers that should have it, if they take it soon.
        avoid: Workers on which it failed before.
    """
    del task, engine, prefer, avoid  # read by the workers that look for runs
    settings, directory, log = get_settings(), Path(attempt_dir), get_run_logger()
    worker = settings.worker_id or ""
    try:
        job = at_home(read_job(directory), settings)
        with EventWriter(directory) as events:

            def on_event(event: ExecutionEvent) -> None:
                nonlocal worker
                if event.kind == "placed":
                    worker = str(event.data.get("worker") or worker)
                elif event.kind == "log":
                    log.info("%s", event.data.get("message"))
                events.write(event)

            result = await _run(job, settings, on_event)
    except MlocError as error:
        if directory.is_dir():
            write_outcome(directory, Outcome(worker, error=error))
        return Failed(message=str(error))
    write_outcome(directory, Outcome(worker, result=result))
    return Completed(message=f"{job.title} is done")


async def _run(job: StageJob, settings: MlocSettings, on_event: Any) -> ExecutionResult:
    dispatcher = current_dispatcher()
    if dispatcher is not None:
        return await dispatcher.dispatch(job, on_event=on_event)
    on_event(ExecutionEvent("placed", {"worker": settings.worker_id, "protocol": "ours"}, time.time()))
    async with local_dispatcher(settings) as own:  # in a process of its own: a stock worker runs the deployment
        return await own.dispatch(job, on_event=on_event)


def at_home(job: StageJob, settings: MlocSettings) -> StageJob:
    """Return `job` with the directories of this machine in place of those of the coordinator's."""
    mirrors = str(settings.mirrors_file) if settings.mirrors_file else job.request.settings.get("mirrors")
    own = {**job.request.settings, "home": str(settings.home), "mirrors": mirrors}
    return replace(job, request=replace(job.request, settings=own))
