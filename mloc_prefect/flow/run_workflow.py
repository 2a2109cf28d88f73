"""`run-workflow`: the flow that deployments name; it plans a spec and runs it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from prefect import flow
from prefect.states import Failed

from mloc_prefect.diagnostics.diagnostic import errors
from mloc_prefect.errors import ArtifactError, MlocError, SpecError
from mloc_prefect.flow import spec_parameters
from mloc_prefect.flow.build import end_state
from mloc_prefect.flow.coordinator import coordinate
from mloc_prefect.flow.dispatcher import InProcessDispatcher, current_dispatcher
from mloc_prefect.flow.options import RunOptions
from mloc_prefect.flow.preflight import check_runnable
from mloc_prefect.flow.run_stage import run_stage_attempt
from mloc_prefect.hardware.inventory import read_inventory
from mloc_prefect.plan import WorkflowPlan, check
from mloc_prefect.settings import get_settings
from mloc_prefect.store.backends import open_stores
from mloc_prefect.store.task_watch import open_task_watch
from mloc_prefect.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.hardware.inventory import Inventory
    from mloc_prefect.settings import MlocSettings

__all__ = ["run_stage_attempt", "run_workflow"]


@flow(name="run-workflow", version=__version__, persist_result=False)
async def run_workflow(
    spec: str,
    parameters: dict[str, str] | None = None,
    submission_id: str | None = None,
    file: str = "<submitted>",
    strict: bool = False,
) -> Any:
    """Run an MLOC spec: each of its tasks is a subflow of this run.

    Args:
        spec: The YAML text, or `sha256:<hex>` of a text kept below the results root (`flow.spec_parameters`).
        parameters: Values of `${param.NAME}`.
        submission_id: Id under which finished stages are found again; default: the id of this flow run.
        file: Name that messages show.
        strict: Treat warnings as errors, also those of executors, such as a model that will hardly fit into memory.

    Returns:
        `{"ok", "flow_run_id", "tasks": [...]}` as `mloc run --json` prints it. The run fails with one sentence for each
        stage that failed, or with all diagnostics when the spec is not valid.
    """
    settings = get_settings()
    async with open_task_watch(settings) as watch:
        try:
            text, values = await given_spec(spec, parameters or {}, submission_id, settings)
            options = RunOptions(
                settings=settings,
                params=values,
                submission_id=submission_id,
                strict=strict,
                watch=watch,
                submitted=True,
            )
            plan = await asyncio.to_thread(_plan, text, file, options)
            check_runnable(plan, options, _inventory(options), ignore_resources=False)
        except MlocError as error:  # a mistake of the user: one sentence, no traceback
            return Failed(message=str(error))
        return end_state(await coordinate(plan, options))


def _inventory(options: RunOptions) -> Inventory | None:
    """Return what this machine has if all stages run on it; None in a worker, whose dispatcher uses other machines."""
    dispatcher = current_dispatcher()
    alone = dispatcher is None or isinstance(dispatcher, InProcessDispatcher)
    return read_inventory(options.settings) if alone else None


async def given_spec(
    spec: str, values: Mapping[str, str], submission_id: str | None, settings: MlocSettings
) -> tuple[str, dict[str, str]]:
    """Return the text of a spec and the values of its parameters, which may be references.

    Where the results root of the submitter is not seen, they are read from the submission in Redis.

    Raises:
        ArtifactError: They are nowhere.
        StoreError: Redis cannot be reached.
    """
    root = settings.results_root
    try:
        text = await asyncio.to_thread(spec_parameters.unpack, spec, root)
        return text, await asyncio.to_thread(spec_parameters.unpack_values, values, root)
    except ArtifactError:
        if settings.redis_url is None or submission_id is None:
            raise
        stores = open_stores(settings.redis_url)
        try:
            submission = await stores.tasks.submission(submission_id)
        finally:
            await stores.close()
        if submission is None or not spec_parameters.is_reference_to(spec, submission.raw_yaml):
            raise
        return submission.raw_yaml, dict(submission.parameters)


def _plan(text: str, file: str, options: RunOptions) -> WorkflowPlan:
    plan, diagnostics = check(
        text,
        file,
        strict=options.strict,
        params=options.params,
        max_bytes=options.settings.max_spec_bytes,  # as the endpoint that accepted it
        max_tasks=options.settings.max_tasks,
    )
    if plan is None or errors(diagnostics):
        raise SpecError(errors(diagnostics))
    return plan
