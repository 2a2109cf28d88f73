"""`run-workflow`: the flow that deployments name; it plans a spec and runs it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

from prefect import flow
from prefect.states import Failed
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from mloc_prefect.diagnostics.diagnostic import errors
from mloc_prefect.errors import ArtifactError, MlocError, SpecError
from mloc_prefect.flow import spec_parameters
from mloc_prefect.flow.coordinator import coordinate
from mloc_prefect.flow.dispatcher import InProcessDispatcher, current_dispatcher
from mloc_prefect.flow.options import RunOptions
from mloc_prefect.flow.outcome_run import end_state
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

FLOW = "run-workflow"
"""Name of the flow of workflow runs, also of those of deployed specs: by it they are found again after a crash."""


EXAMPLE = """\
apiVersion: mloc/v1
kind: EchoTask
metadata:
  name: hello
spec:
  taskType: echo          # loads no model; see `mloc templates` for others
  resources: {replicas: 1, hardware: {cpu: 1, memory: 256Mi}}
  data:
    message: hello
"""
"""What the field `spec` of the form in Prefect's UI holds at first."""

# `json-string` is the one format for which Prefect's UI shows an editor as tall as its text; the server accepts any
# text there. The example is in the form only: a run without a spec is still refused.
_SPEC_FIELD = {"title": "Spec (YAML)", "format": "json-string", "default": EXAMPLE}


@flow(name=FLOW, version=__version__, persist_result=False)
async def run_workflow(
    spec: Annotated[str, Field(json_schema_extra=dict(_SPEC_FIELD))],
    parameters: Annotated[dict[str, Any] | None, Field(json_schema_extra={"title": "Parameters"})] = None,
    submission_id: Annotated[str | None, SkipJsonSchema()] = None,
    file: Annotated[str, SkipJsonSchema()] = "<submitted>",
    strict: Annotated[bool, Field(json_schema_extra={"title": "Warnings are errors"})] = False,
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
    return await run_given(spec, parameters or {}, submission_id=submission_id, file=file, strict=strict)


async def run_given(
    spec: str, parameters: Mapping[str, Any], *, submission_id: str | None = None, file: str, strict: bool = False
) -> Any:
    """Do the work of `run_workflow` in the flow run of this context; the arguments are those of the flow."""
    settings = get_settings()
    async with open_task_watch(settings) as watch:
        try:
            text, values = await given_spec(spec, parameters, submission_id, settings)
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
    spec: str, values: Mapping[str, Any], submission_id: str | None, settings: MlocSettings
) -> tuple[str, dict[str, Any]]:
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
