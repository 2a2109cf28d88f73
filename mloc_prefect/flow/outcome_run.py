"""Runs a flow and returns the outcome of its function in addition to the state; Prefect hands back the state only."""

from __future__ import annotations

from copy import copy
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
from prefect.exceptions import PrefectException
from prefect.states import Cancelled, Failed

from mloc_prefect.flow.outcome import StageOutcome, WorkflowOutcome
from mloc_prefect.prefect_ext.engine import run_as

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from prefect import Flow, State

    from mloc_prefect.prefect_ext.engine import RunIdentity

T = TypeVar("T", StageOutcome, WorkflowOutcome)


async def run_for_outcome(
    flow: Flow[..., Coroutine[Any, Any, T]],
    parameters: dict[str, Any],
    identity: RunIdentity,
    end_state: Callable[[T], Any],
    *,
    report_may_fail: bool = False,
    wait_for: Any = None,
) -> tuple[State[Any] | None, T | None]:
    """Run a flow whose function returns an outcome; return the final state and that outcome.

    Args:
        flow: The flow.
        parameters: What its function is called with.
        identity: How the run shows in Prefect.
        end_state: Returns what Prefect makes the final state of: a state, or the data of a completed run.
        report_may_fail: Keep the outcome when Prefect refuses the final state; the state is then None.
        wait_for: Tasks and runs to wait for, as in any Prefect flow.

    Returns:
        The state, and the outcome or None when the function did not return.
    """
    outcomes: list[T] = []
    function: Any = flow.fn

    @wraps(function)
    async def record(**given: Any) -> Any:
        outcomes.append(await function(**given))
        return end_state(outcomes[0])

    recorded: Flow[..., Any] = copy(flow)
    recorded.fn = record
    try:
        state, _ = await run_as(recorded, parameters, identity, wait_for=wait_for)
    except (httpx.HTTPError, PrefectException):
        if not (outcomes and report_may_fail):
            raise
        return None, outcomes[0]
    return state, outcomes[0] if outcomes else None


def end_state(outcome: WorkflowOutcome) -> Any:
    """Return what the root flow's function returns: the outcome, or a state with one sentence (and no traceback)."""
    if outcome.ok:
        return outcome.to_dict()
    ended = {t.status for t in outcome.tasks}
    return Cancelled(message=outcome.message) if "FAILED" not in ended else Failed(message=outcome.message)
