"""A plan as an ordinary Prefect flow.

flow = build_flow(plan)
outcome = await flow()
"""

from __future__ import annotations

import asyncio
from copy import copy
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from prefect import Flow, serve
from prefect.utilities.engine import link_state_to_flow_run_result

from mloc_prefect.errors import ExecutionError, MlocError
from mloc_prefect.flow.coordinator import coordinate, root_identity
from mloc_prefect.flow.options import RunOptions
from mloc_prefect.flow.outcome import WorkflowOutcome
from mloc_prefect.flow.outcome_run import end_state, run_for_outcome
from mloc_prefect.plan import plan_workflow
from mloc_prefect.prefect_ext.run_facts import COORDINATOR_QUEUE
from mloc_prefect.spec.loader import load_workflow
from mloc_prefect.version import __version__

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping
    from pathlib import Path
    from uuid import UUID

    from prefect import State
    from prefect.deployments.runner import RunnerDeployment

    from mloc_prefect.plan.workflow_plan import WorkflowPlan


T = TypeVar("T")

_OF_SERVE = ("pause_on_shutdown", "print_starting_message", "limit")


class WorkflowFailedError(ExecutionError):
    """Some stages did not end DONE.

    Attributes:
        outcome: What came of each stage.
    """

    def __init__(self, outcome: WorkflowOutcome) -> None:
        super().__init__(outcome.message, retryable=False)
        self.outcome = outcome


class WorkflowFlow(Flow[[], Any]):
    """A Prefect flow made from a plan. Calling it returns a `WorkflowOutcome`; deployed, it runs in any Prefect engine.

    A deployment of it holds the text of the spec, and names a flow of the installed `mloc_prefect`: it runs wherever
    that is installed, also in the pool of a worker that runs no other code.

    Attributes:
        plan: The plan; `with_options` gives a stock flow of the same function.
        options: Options of its runs.
    """

    plan: WorkflowPlan | None = None
    options: RunOptions | None = None

    def __call__(self, *args: Any, return_state: bool = False, wait_for: Any = None, **kwargs: Any) -> Any:
        """Run the flow in this event loop; inside another flow as its subflow.

        A task that is given the outcome depends on this run in the graph of that flow.

        Args:
            args: None: parameters have names.
            return_state: Return the final state.
            wait_for: Tasks and runs to wait for first.
            kwargs: Values of `${param.NAME}`.

        Returns:
            A coroutine of the `WorkflowOutcome`, or of the final state when `return_state` is set.

        Raises:
            WorkflowFailedError: Some stages did not end DONE (with `return_state` the state has the message instead).
        """
        if self.plan is None:
            stock: Any = super().__call__  # its overloads do not know a flag that is decided at run time
            return stock(*args, return_state=return_state, wait_for=wait_for, **kwargs)
        options = self.options or RunOptions()
        options = replace(options, params={**options.params, **kwargs}) if kwargs else options
        return self._run(self.plan, options, return_state=return_state, wait_for=wait_for)

    def to_deployment(self, name: str | None = None, *args: Any, **options: Any) -> Any:
        """Return a deployment of the spec for `prefect.serve`; in an event loop, a coroutine of it.

        Args:
            name: Its name; default: that of the spec.
            args: None; Prefect's method allows them.
            options: As Prefect's `Flow.to_deployment` takes them: `parameters`, `cron`, `interval`, `tags`, ...

        Raises:
            MlocError: The spec cannot be deployed; the message says why.
        """
        made = self._deployment(name, *args, **options)
        return _soon(made) if _in_loop() else made

    async def ato_deployment(self, name: str | None = None, *args: Any, **options: Any) -> RunnerDeployment:
        """Return a deployment of the spec for `prefect.serve`, as `to_deployment` does."""
        return self._deployment(name, *args, **options)

    def deploy(self, name: str | None = None, work_pool_name: str | None = None, *args: Any, **options: Any) -> Any:
        """Create or change a deployment of the spec on a work pool; return its id, or a coroutine of it.

        Args:
            name: Its name; default: that of the spec.
            work_pool_name: The pool, which must exist; default: the setting `MLOC_WORK_POOL`.
            args: None; Prefect's method allows them.
            options: As for `to_deployment`.

        Raises:
            MlocError: The spec cannot be deployed; the message says why.
        """
        deployment = self._on_pool(name, work_pool_name, *args, **options)
        return deployment.apply()

    async def adeploy(
        self, name: str | None = None, work_pool_name: str | None = None, *args: Any, **options: Any
    ) -> UUID:
        """Create or change a deployment of the spec on a work pool, as `deploy` does; return its id."""
        return await self._on_pool(name, work_pool_name, *args, **options).aapply()

    def serve(self, name: str | None = None, *args: Any, **options: Any) -> None:
        """Run scheduled runs of a deployment of the spec on this machine, until it is interrupted.

        Args:
            name: Its name; default: that of the spec.
            args: None; Prefect's method allows them.
            options: As for `to_deployment`, and `pause_on_shutdown`, `print_starting_message` and `limit` as
                `prefect.serve` takes them.

        Raises:
            MlocError: The spec cannot be deployed; the message says why.
        """
        own = {key: options.pop(key) for key in _OF_SERVE if key in options}
        serve(self._deployment(name, *args, **options), **own)

    def _on_pool(self, name: str | None, pool: str | None, *args: Any, **options: Any) -> RunnerDeployment:
        if options.get("work_queue_name") is None:
            options["work_queue_name"] = COORDINATOR_QUEUE
        chosen = pool or (self.options or RunOptions()).settings.work_pool
        return self._deployment(name, *args, work_pool_name=chosen, **options)

    def _deployment(self, name: str | None, *args: Any, **options: Any) -> RunnerDeployment:
        from mloc_prefect.flow.deployed.spec_deployment import deployment_of

        if self.plan is None:
            raise MlocError("this flow has no plan to deploy", hint="deploy the one that workflow_flow returned")
        if args:
            raise MlocError(f"{args[0]!r} has no name", hint="give options by name, for example cron='0 7 * * *'")
        given = self.options or RunOptions()
        values = {**given.params, **(options.pop("parameters", None) or {})}
        return deployment_of(self.plan, values, given.root).configured(name, **options)

    async def _run(self, plan: WorkflowPlan, options: RunOptions, *, return_state: bool, wait_for: Any) -> Any:
        state, outcome = await _run_root(self, plan, options, wait_for=wait_for)
        if return_state:
            return state
        if outcome is None:
            raise _no_outcome(state)
        if not outcome.ok:
            raise WorkflowFailedError(outcome)
        link_state_to_flow_run_result(state, outcome)
        return outcome


def workflow_flow(
    spec: str | Path, *, params: Mapping[str, Any] | None = None, options: RunOptions | None = None
) -> WorkflowFlow:
    """Return the flow of a spec, to be called, deployed (`deploy`) or served (`serve`).

    Args:
        spec: Path of the spec, or its text.
        params: Values of `${param.NAME}`.
        options: How to run it; default: the settings in force when it runs.

    Raises:
        SpecError: The spec is not valid; the message has every fault with its line.
        MlocError: The file cannot be read.
    """
    chosen = options or RunOptions()
    values = {**chosen.params, **(params or {})}
    plan = plan_workflow(load_workflow(spec), params=tuple(values))
    return build_flow(plan, options=replace(chosen, params=values))


def build_flow(plan: WorkflowPlan, *, options: RunOptions | None = None) -> WorkflowFlow:
    """Return an async Prefect flow without parameters that runs `plan`: each stage is an async subflow.

    Args:
        plan: What `plan_workflow` returned.
        options: How to run it; default: the settings in force when it runs.
    """

    async def workflow() -> Any:
        return end_state(await coordinate(plan, options or RunOptions()))

    flow = WorkflowFlow(
        fn=workflow,
        name=flow_name(plan.name),
        version=__version__,
        description=f"{len(plan.stages)} stages ({plan.kind}), made from {plan.file}",
        validate_parameters=False,
        persist_result=False,
    )
    flow.plan, flow.options = plan, options
    return flow


async def run_plan(plan: WorkflowPlan, *, options: RunOptions | None = None) -> WorkflowOutcome:
    """Run `plan` as a flow and return its outcome, also when stages failed.

    Raises:
        ExecutionError: The run ended before any stage could (the Prefect API refused the run).
    """
    state, outcome = await _run_root(build_flow(plan, options=options), plan, options or RunOptions())
    if outcome is None:
        raise _no_outcome(state)
    return outcome


def flow_name(name: str) -> str:
    """Return `name` as a flow name: without the characters that Prefect bans in them."""
    return "".join("-" if c in '/%&><"' else c for c in name).strip() or "workflow"


async def _run_root(
    flow: WorkflowFlow, plan: WorkflowPlan, options: RunOptions, *, wait_for: Any = None
) -> tuple[State[Any], WorkflowOutcome | None]:
    @wraps(flow.fn)
    async def workflow() -> WorkflowOutcome:
        return await coordinate(plan, options)

    own: Flow[[], Coroutine[Any, Any, WorkflowOutcome]] = copy(flow)
    own.fn = workflow
    state, outcome = await run_for_outcome(own, {}, root_identity(plan, options), end_state, wait_for=wait_for)
    assert state is not None  # an error of the report was raised
    return state, outcome


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _soon(value: T) -> T:
    return value


def _no_outcome(state: State[Any]) -> ExecutionError:
    return ExecutionError(state.message or f"the run ended as {state.name}", retryable=False)
