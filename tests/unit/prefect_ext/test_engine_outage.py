"""The engine while the server is away: work that is done waits for it, a run that ends before its time does not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import pytest
from prefect import flow_engine
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import Abort
from prefect.states import Completed, Crashed, Failed, Running

from mloc_prefect.flow.build import build_flow
from mloc_prefect.prefect_ext import retry
from mloc_prefect.prefect_ext.engine import MlocEngine, RunIdentity
from mloc_prefect.prefect_ext.run_control import RunSwitch, WorkflowRunReader
from tests.support.flows import graph

if TYPE_CHECKING:
    from prefect.flow_engine import AsyncFlowRunEngine

FLOW = build_flow(graph({"a": ([], {})}))


class Server:
    """Takes states, after it has been away for so many questions."""

    def __init__(self, away: int) -> None:
        self.away, self.asked = away, 0
        self.run = FlowRun(flow_id=uuid4(), state=Running(), run_count=1)

    async def read_flow_run(self, _: Any) -> FlowRun:
        self._answer()
        return self.run

    async def propose(self, _client: Any, state: Any, **_: Any) -> Any:
        self._answer()
        return state

    def _answer(self) -> None:
        self.asked += 1
        if self.asked <= self.away:
            raise httpx.ConnectError("All connection attempts failed")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    async def at_once(_seconds: float) -> None: ...

    found = Server(3)
    monkeypatch.setattr(retry, "_sleep", at_once)
    monkeypatch.setattr(flow_engine, "propose_state", found.propose)
    return found


def started(engine: AsyncFlowRunEngine[Any, Any], server: Server) -> Any:
    engine.flow_run, engine._is_started = server.run, True
    engine._client = server  # type: ignore[assignment]  # stands in
    return engine


def stage(server: Server, key: str | None = "a") -> Any:
    return started(MlocEngine(flow=FLOW, identity=RunIdentity(name="x", key=key)), server)


async def test_the_end_of_a_stage_waits_for_the_server(server: Server) -> None:
    assert (await stage(server).set_state(Completed())).is_completed()
    assert server.asked == 4


async def test_that_of_a_stage_that_is_cancelled_does_not(server: Server) -> None:
    with pytest.raises(httpx.ConnectError):
        await stage(server).handle_crash(asyncio.CancelledError())
    assert server.asked == 1


async def test_a_root_run_without_a_worker_says_at_once_that_there_is_no_server(server: Server) -> None:
    with pytest.raises(httpx.ConnectError):
        await stage(server, key=None).set_state(Running())


async def test_the_end_of_a_run_of_a_worker_waits_for_the_server(server: Server) -> None:
    switch = RunSwitch(run_count=1)
    engine = started(MlocEngine(flow=FLOW, switch=switch), server)
    assert (await engine.set_state(Completed())).is_completed()
    assert switch.ended
    assert server.asked == 5  # whose run it is, then the state


async def test_an_end_that_a_person_has_just_set_is_not_overwritten(server: Server) -> None:
    server.away = 0
    reader = WorkflowRunReader(lambda: server.read_flow_run(None), fresh=3600.0)
    assert not (await reader.read_recent()).state.is_final()  # type: ignore[union-attr]  # the result asks the same
    server.run = server.run.model_copy(update={"state": Failed(message="set by a person")})
    engine = started(MlocEngine(flow=FLOW, switch=RunSwitch(run_count=1, reader=reader)), server)
    with pytest.raises(Abort):
        await engine.set_state(Completed())


async def test_that_of_a_run_whose_worker_stops_does_not(server: Server) -> None:
    engine = started(MlocEngine(flow=FLOW, switch=RunSwitch(stopped=True, run_count=1)), server)
    with pytest.raises(httpx.ConnectError):
        await engine.set_state(Crashed())
    assert server.asked == 1
