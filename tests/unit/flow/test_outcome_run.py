"""The outcome of a flow beside its state: there whenever the function returned, whatever Prefect makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prefect import Flow
from prefect.states import Completed, Failed

from mloc_prefect.flow import outcome_run
from mloc_prefect.flow.outcome_run import run_for_outcome
from mloc_prefect.prefect_ext.engine import RunIdentity

if TYPE_CHECKING:
    from collections.abc import Callable

WHO = RunIdentity(name="n")


async def double(number: int) -> int:
    return 2 * number


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception | None], list[Any]]:
    """Put an engine in place that calls the function and ends with an error, or with a state of its value."""

    def prepare(error: Exception | None) -> list[Any]:
        values: list[Any] = []

        async def run_as(flow: Any, parameters: dict[str, Any], identity: RunIdentity, *, wait_for: Any = None) -> Any:
            assert wait_for is None
            try:
                values.append(await flow.fn(**parameters))
            except ValueError as wrong:
                return Failed(message=str(wrong)), None
            if error is not None:
                raise error
            return Completed(message=str(values[0])), None

        monkeypatch.setattr(outcome_run, "run_as", run_as)
        return values

    return prepare


async def test_state_and_outcome_come_together(engine: Any) -> None:
    values, flow = engine(None), Flow(fn=double, name="double")
    state, outcome = await run_for_outcome(flow, {"number": 4}, WHO, lambda n: f"is {n}")
    assert state is not None
    assert (state.message, outcome, values) == ("is 8", 8, ["is 8"])
    assert await flow.fn(1) == 2, "the flow itself stays as it is, for other engines"


async def test_two_runs_of_one_flow_do_not_share_an_outcome(engine: Any) -> None:
    engine(None)
    flow = Flow(fn=double, name="double")
    found = [(await run_for_outcome(flow, {"number": n}, WHO, str))[1] for n in (1, 2)]
    assert found == [2, 4]


async def test_a_function_that_did_not_return_has_no_outcome(engine: Any) -> None:
    engine(None)

    async def broken() -> int:
        raise ValueError("no")

    state, outcome = await run_for_outcome(Flow(fn=broken, name="broken"), {}, WHO, str)
    assert state is not None
    assert (state.name, outcome) == ("Failed", None)


async def test_an_outcome_outlives_a_refused_report_where_that_is_allowed(engine: Any) -> None:
    engine(httpx.ConnectError("refused"))
    flow = Flow(fn=double, name="double")
    assert await run_for_outcome(flow, {"number": 4}, WHO, str, report_may_fail=True) == (None, 8)
    with pytest.raises(httpx.ConnectError):
        await run_for_outcome(flow, {"number": 4}, WHO, str)
