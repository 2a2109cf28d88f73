"""`run-stage`: the flow that runs one attempt on a worker of the pool which has leased what it needs."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from mloc_prefect.artifacts.spec_rules import SpecRules, refusal
from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts
from mloc_prefect.errors import ExecutionError, MlocError
from mloc_prefect.execution.protocol import ExecutionEvent
from mloc_prefect.flow.attempt_files import AttemptOutcome, EventWriter, read_job, write_outcome
from mloc_prefect.flow.dispatcher import current_dispatcher, local_dispatcher
from mloc_prefect.prefect_ext.requests import current_api_url
from mloc_prefect.settings import get_settings
from mloc_prefect.version import __version__

if TYPE_CHECKING:
    from mloc_prefect.execution.protocol import ExecutionResult
    from mloc_prefect.flow.dispatcher import StageJob
    from mloc_prefect.settings import MlocSettings


@flow(name="run-stage", version=__version__, persist_result=False)
async def run_stage_attempt(
    attempt_dir: str,
    task: str = "",
    engine: str = "",
    prefer: list[str] | None = None,
    avoid: list[str] | None = None,
) -> Any:
    """Run one attempt whose job lies in `attempt_dir`; its events and its outcome are written there, too.

    Args:
        attempt_dir: Absolute directory of the attempt below the shared results root.
        task: Id of the task, for people.
        engine: Key of the engine it loads; runs with the same key can share a warm process.
        prefer: Workers that should take it, if they do so soon.
        avoid: Workers on which it failed before.
    """
    del task, engine, prefer, avoid  # read by workers when they claim runs
    settings, directory, log = get_settings(), Path(attempt_dir), get_run_logger()
    worker = settings.worker_id or ""
    try:
        job = confined(with_local_dirs(read_job(directory), settings), settings)
        with EventWriter(directory) as events:

            def on_event(event: ExecutionEvent) -> None:
                nonlocal worker
                if event.kind == "placed":
                    worker = str(event.data.get("worker") or worker)
                elif event.kind == "log":
                    log.info("%s", event.data.get("message"))
                events.write(event)

            result = await _run_job(job, settings, on_event)
    except MlocError as error:
        if directory.is_dir():
            write_outcome(directory, AttemptOutcome(worker, error=error))
        return Failed(message=str(error))
    write_outcome(directory, AttemptOutcome(worker, result=result))
    return Completed(message=f"{job.title} is done")


async def _run_job(job: StageJob, settings: MlocSettings, on_event: Any) -> ExecutionResult:
    dispatcher = current_dispatcher()
    if dispatcher is not None:
        return await dispatcher.dispatch(job, on_event=on_event)
    on_event(ExecutionEvent("placed", {"worker": settings.worker_id, "protocol": "ours"}, time.time()))
    async with local_dispatcher(settings) as own:  # in a process of its own: a stock worker runs the deployment
        return await own.dispatch(job, on_event=on_event)


def confined(job: StageJob, settings: MlocSettings) -> StageJob:
    """Return `job` with the limits of this machine: what lies on the pool is trusted no more than a submission.

    Raises:
        ExecutionError: It reads or runs what the settings here do not allow; not retryable.
    """
    request = job.request
    base = Path(str(request.settings.get("base_dir") or Path.cwd()))
    rules = SpecRules(settings=settings, submitted=True, results=settings.results_root, base=base, working=Path.cwd())
    problems = rules.problems(request.spec, filled=True)
    if problems:
        text, hint = refusal(problems, "refused by this worker")
        raise ExecutionError(text, retryable=False, hint=hint)
    roots, allowed = rules.roots, AllowedHosts.of(settings, loopback=True, api_url=current_api_url())
    limits = {"inputs": roots.to_wire() if roots is not None else None, "allowed_rewards": settings.allowed_rewards}
    own = {**request.settings, **allowed.to_wire(), **limits}
    return replace(job, request=replace(request, settings=own))


def with_local_dirs(job: StageJob, settings: MlocSettings) -> StageJob:
    """Return `job` with the directories of this machine instead of the coordinator's."""
    mirrors = str(settings.mirrors_file) if settings.mirrors_file else job.request.settings.get("mirrors")
    own = {**job.request.settings, "home": str(settings.home), "mirrors": mirrors}
    return replace(job, request=replace(job.request, settings=own))
