"""What the engine of runs in the worker's loop does with requests that are half way when the run is cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prefect.flow_engine import AsyncFlowRunEngine
from prefect.states import Running

from mloc_prefect.orchestrate.flow import build_flow
from mloc_prefect.worker._prefect import WarmEngine
from tests.support.flows import graph


async def test_a_cancelled_run_hears_first_whether_it_became_running(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer, told = asyncio.Event(), asyncio.Event(), []

    async def set_state(_engine: Any, state: Any, _force: bool = False) -> Any:
        asked.set()
        await answer.wait()
        told.append(state.type)
        return state

    monkeypatch.setattr(AsyncFlowRunEngine, "set_state", set_state)
    engine = WarmEngine(flow=build_flow(graph({"a": ([], {})})), parameters={})
    begun = asyncio.create_task(engine.set_state(Running()))
    await asked.wait()
    begun.cancel()
    done, _ = await asyncio.wait({begun}, timeout=0.05)
    assert not done  # whoever reads the run's state now might still see Pending
    answer.set()
    with pytest.raises(asyncio.CancelledError):
        await begun
    assert len(told) == 1
