"""A plan as an ordinary Prefect flow.

flow = build_flow(plan)
outcome = await flow()
"""

from __future__ import annotations

from copy import copy
from functools import wraps
from typing import TYPE_CHECKING, Any

from prefect import Flow
from prefect.states import Cancelled, Failed
from prefect.utilities.engine import link_state_to_flow_run_result

from mloc_prefect.errors import ExecutionError
from mloc_prefect.flow.coordinator import coordinate, root_identity
from mloc_prefect.flow.options import RunOptions
from mloc_prefect.flow.outcome import WorkflowOutcome
from mloc_prefect.flow.outcome_run import run_for_outcome
from mloc_prefect.version import __version__

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from prefect import State

    from mloc_prefect.plan.workflow_plan import WorkflowPlan


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
            args: None: the flow has no parameters.
            return_state: Return the final state.
            wait_for: Tasks and runs to wait for first.
            kwargs: None, as for `args`.

        Returns:
            A coroutine of the `WorkflowOutcome`, or of the final state when `return_state` is set.

        Raises:
            WorkflowFailedError: Some stages did not end DONE (with `return_state` the state has the message instead).
        """
        if self.plan is None:
            stock: Any = super().__call__  # its overloads do not know a flag that is decided at run time
            return stock(*args, return_state=return_state, wait_for=wait_for, **kwargs)
        return self._run(self.plan, self.options or RunOptions(), return_state=return_state, wait_for=wait_for)

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


def end_state(outcome: WorkflowOutcome) -> Any:
    """Return what the root flow's function returns: the outcome, or a state with one sentence (and no traceback)."""
    if outcome.ok:
        return outcome.to_dict()
    ended = {t.status for t in outcome.tasks}
    return Cancelled(message=outcome.message) if "FAILED" not in ended else Failed(message=outcome.message)


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


def _no_outcome(state: State[Any]) -> ExecutionError:
    return ExecutionError(state.message or f"the run ended as {state.name}", retryable=False)
