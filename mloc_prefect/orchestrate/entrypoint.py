"""`run-workflow`: the generic flow that deployments name; it gets a spec and runs it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from prefect import flow
from prefect.states import Failed

from mloc_prefect import __version__
from mloc_prefect.bridge.watch import task_watch
from mloc_prefect.errors import MlocError, SpecError
from mloc_prefect.orchestrate import specs
from mloc_prefect.orchestrate.coordinate import coordinate
from mloc_prefect.orchestrate.dispatch import InProcessDispatcher, current_dispatcher
from mloc_prefect.orchestrate.flow import end_state
from mloc_prefect.orchestrate.options import RunOptions
from mloc_prefect.orchestrate.preflight import check_runnable
from mloc_prefect.orchestrate.stage_entry import run_stage_attempt
from mloc_prefect.plan import WorkflowPlan, check
from mloc_prefect.settings import get_settings
from mloc_prefect.spec.diagnostics import errors
from mloc_prefect.worker.inventory import read_inventory

if TYPE_CHECKING:
    from mloc_prefect.worker.inventory import Inventory

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
        spec: The YAML text, or `sha256:<hex>` of a text kept below the results root (`orchestrate.specs`).
        parameters: Values of `${param.NAME}`.
        submission_id: Id under which finished stages are found again; default: the id of this flow run.
        file: Name that messages show.
        strict: Treat warnings as errors, also those of executors, such as a model that will hardly fit into memory.

    Returns:
        `{"ok", "flow_run_id", "tasks": [...]}` as `mloc run --json` prints it. The run fails with one sentence for each
        stage that failed, or with all diagnostics when the spec is not valid.
    """
    settings = get_settings()
    async with task_watch(settings) as watch:
        options = RunOptions(
            settings=settings, params=parameters or {}, submission_id=submission_id, strict=strict, watch=watch
        )
        try:
            plan = await asyncio.to_thread(_plan, spec, file, options)
            check_runnable(plan, options, _inventory(options), ignore_resources=False)
        except MlocError as error:  # a mistake of the user: a sentence, no traceback
            return Failed(message=str(error))
        return end_state(await coordinate(plan, options))


def _inventory(options: RunOptions) -> Inventory | None:
    """Return what this machine has if all stages run on it; a worker's dispatcher finds them other places."""
    dispatcher = current_dispatcher()
    alone = dispatcher is None or isinstance(dispatcher, InProcessDispatcher)
    return read_inventory(options.settings) if alone else None


def _plan(spec: str, file: str, options: RunOptions) -> WorkflowPlan:
    text = specs.unpack(spec, options.root)
    plan, diagnostics = check(text, file, strict=options.strict, params=options.params)
    if plan is None or errors(diagnostics):
        raise SpecError(errors(diagnostics))
    return plan
