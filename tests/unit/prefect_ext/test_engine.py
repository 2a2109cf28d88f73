"""The engine: what it overrides and calls in Prefect is there, and what it does differently."""

from __future__ import annotations

import asyncio
import gc
import inspect
import weakref
from contextvars import ContextVar
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import FlowRunCreate
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.context import FlowRunContext, TagsContext
from prefect.exceptions import Abort
from prefect.flow_engine import AsyncFlowRunEngine
from prefect.states import Running
from prefect.tasks import Task

from mloc_prefect.flow.build import WorkflowFlow, build_flow, flow_name
from mloc_prefect.flow.coordinator import root_identity
from mloc_prefect.flow.options import RunOptions
from mloc_prefect.flow.outcome import StageOutcome, WorkflowOutcome
from mloc_prefect.flow.outcome_run import end_state
from mloc_prefect.prefect_ext import engine
from mloc_prefect.prefect_ext.engine import INHERITED, MlocEngine, RunIdentity
from mloc_prefect.prefect_ext.run_control import RunContext, RunSwitch, use_run_context
from tests.support.flows import graph


@pytest.mark.parametrize("name", INHERITED)
def test_the_stock_engine_has_what_is_overridden_or_called(name: str) -> None:
    assert hasattr(AsyncFlowRunEngine, name)


def test_signatures_are_as_expected() -> None:
    def names(function: object) -> list[str]:
        return list(inspect.signature(function).parameters)  # type: ignore[arg-type]

    assert names(AsyncFlowRunEngine.create_flow_run) == ["self", "client"]
    assert names(AsyncFlowRunEngine.load_subflow_run) == ["self", "parent_task_run", "client", "context"]
    assert names(AsyncFlowRunEngine.handle_crash) == ["self", "exc"]
    assert {"client", "flow_run_context", "parameters", "extra_task_inputs"} <= set(names(Task.create_run))
    assert {"labels", "tags", "name", "parent_task_run_id", "flow_id", "state"} <= set(FlowRunCreate.model_fields)
    assert {"flow_run", "client"} <= set(FlowRunContext.model_fields)
    assert hasattr(TagsContext.get(), "current_tags")
    assert inspect.iscoroutinefunction(PrefectClient.create_flow)
    assert "_flow_run_name_set" in AsyncFlowRunEngine.__dataclass_fields__
    assert "_is_subflow_tracking_task" in inspect.getsource(Task.create_run)
    assert "_is_subflow_tracking_task" in inspect.getsource(AsyncFlowRunEngine.create_flow_run)


def test_stages_send_no_heartbeats_and_roots_do() -> None:
    flow = build_flow(graph({"a": ([], {})}))
    stage = MlocEngine(flow=flow, parameters={}, identity=RunIdentity(name="x", key="a"))
    root = MlocEngine(flow=flow, parameters={}, identity=RunIdentity(name="x"))
    assert stage.heartbeat_seconds is None
    assert root.heartbeat_seconds
    assert MlocEngine(flow=flow, parameters={}, switch=RunSwitch()).heartbeat_seconds is None, "its worker sends them"


def test_each_stage_has_a_tracking_task_of_its_own() -> None:
    flow = build_flow(graph({"a": ([], {})}))
    keys = [engine._tracking_task(flow, RunIdentity(name="x", key=k)).task_key for k in ("a", "b", "a")]
    assert keys[0] == keys[2] != keys[1]


def test_a_built_flow_is_an_ordinary_prefect_flow() -> None:
    flow = build_flow(graph({"a": ([], {})}, name="50% a/b"))
    assert isinstance(flow, WorkflowFlow)
    assert flow.isasync
    assert flow.name == flow_name("50% a/b") == "50- a-b"
    assert flow.parameters.properties == {}
    assert flow.with_options(name="other").fn is flow.fn, "a copy runs in the stock engine"


def test_the_root_is_tagged_with_a_known_submission_only() -> None:
    plan = graph({"a": ([], {})})
    assert root_identity(plan, RunOptions()).tags == ("mloc",)
    assert root_identity(plan, RunOptions(submission_id="s")).tags == ("mloc", "mloc-submission:s")


def test_task_ids_come_from_submission_and_key() -> None:
    plan = graph({"a": ([], {}), "b": ([], {})})
    one, same, other = (
        RunOptions(submission_id=s).ids(plan, "6f8b2a52-3df0-4d2b-8c61-0a6a0a3f3b11") for s in ("x", "x", None)
    )
    assert one == same
    assert len({*one.values(), *other.values()}) == 4
    assert RunOptions(task_ids={"a": "given"}).ids(plan, "r")["a"] == "given"


def test_end_states_say_what_failed() -> None:
    def outcome(*tasks: StageOutcome) -> WorkflowOutcome:
        return WorkflowOutcome(ok=all(t.ok for t in tasks), flow_run_id="r", name="w", tasks=tasks)

    good = StageOutcome(key="a", node="a", task_id="1", status="DONE")
    bad = StageOutcome(key="b", node="b", task_id="2", status="FAILED", error="boom\ndetails")
    below = StageOutcome(key="c", node="c", task_id="3", status="FAILED", error="not run", blamed=("b",))
    gone = StageOutcome(key="d", node="d", task_id="4", status="CANCELLED")
    assert end_state(outcome(good)) == {"ok": True, "flow_run_id": "r", "tasks": [good.to_dict()]}
    assert end_state(outcome(good, bad, below)).message == "stage 'b' failed: boom; not run: 'c'"
    assert end_state(outcome(good, gone)).is_cancelled()
    assert outcome(good).task("a") is good


async def test_a_cancelled_run_hears_first_whether_it_became_running(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer, answered = asyncio.Event(), asyncio.Event(), []

    async def set_state(_engine: Any, state: Any, _force: bool = False) -> Any:
        asked.set()
        await answer.wait()
        answered.append(state.type)
        return state

    monkeypatch.setattr(AsyncFlowRunEngine, "set_state", set_state)
    begun = asyncio.create_task(
        MlocEngine(flow=build_flow(graph({"a": ([], {})})), parameters={}, switch=RunSwitch()).set_state(Running())
    )
    await asked.wait()
    begun.cancel()
    done, _ = await asyncio.wait({begun}, timeout=0.05)
    assert not done, "whoever reads the state of the run now might still see Pending"
    answer.set()
    with pytest.raises(asyncio.CancelledError):
        await begun
    assert len(answered) == 1


async def test_a_run_that_is_not_ours_any_more_never_becomes_running(monkeypatch: pytest.MonkeyPatch) -> None:
    proposed: list[Any] = []

    async def set_state(_engine: Any, state: Any, _force: bool = False) -> Any:
        proposed.append(state)
        return state

    async def held() -> bool:
        return bool(proposed)

    monkeypatch.setattr(AsyncFlowRunEngine, "set_state", set_state)
    flow = build_flow(graph({"a": ([], {})}))
    switch = RunSwitch(still_held=held)
    with pytest.raises(Abort):
        await MlocEngine(flow=flow, parameters={}, switch=switch).set_state(Running())
    assert proposed == [], "the server would accept it from anybody"
    proposed.append(None)
    await MlocEngine(flow=flow, parameters={}, switch=switch).set_state(Running())
    assert len(proposed) == 2


class FlowClient:
    """A client whose requests wait until they are answered, as in a context that holds the client."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer = asyncio.Event()

    async def create_flow(self, flow: Any) -> UUID:
        self.asked.append(flow.name)
        await self.answer.wait()
        return uuid4()


_client: ContextVar[FlowClient] = ContextVar("client")  # as Prefect's `AsyncClientContext`


async def test_stages_that_start_together_ask_once_for_the_id_of_their_flow() -> None:
    client, flow = FlowClient(), build_flow(graph({"a": ([], {})}))
    first, *others = [asyncio.create_task(engine._flow_id(client, flow)) for _ in range(5)]  # type: ignore[arg-type]
    await asyncio.sleep(0)
    first.cancel()
    client.answer.set()
    await asyncio.gather(first, return_exceptions=True)
    assert len({await other for other in others}) == 1
    assert client.asked == [flow.name] * 2, "the first one was cancelled"


async def test_clients_are_forgotten_with_their_runs() -> None:
    flow, alive = build_flow(graph({"a": ([], {})})), weakref.WeakSet[FlowClient]()

    async def run_once() -> None:
        client = FlowClient()
        client.answer.set()
        alive.add(client)
        _client.set(client)
        await asyncio.gather(*(engine._flow_id(client, flow) for _ in range(3)))  # type: ignore[arg-type]

    for _ in range(5):
        await asyncio.create_task(run_once())
    await asyncio.sleep(0)  # the event loop lets go of the last task
    gc.collect()
    assert len(alive) == 0


class RunClient(FlowClient):
    """A client that creates a run when it is let, and notes what states runs get."""

    def __init__(self) -> None:
        super().__init__()
        self.run = FlowRun(id=uuid4(), flow_id=uuid4(), name="a")
        self.created = asyncio.Event()
        self.states: list[tuple[UUID, Any]] = []

    async def request(self, *_: Any, **__: Any) -> httpx.Response:
        await self.answer.wait()
        self.created.set()
        return httpx.Response(201, json=self.run.model_dump(mode="json"))

    async def set_flow_run_state(self, flow_run_id: UUID, state: Any, force: bool) -> None:
        assert force
        self.states.append((flow_run_id, state.type))


@pytest.mark.parametrize("wanted", [True, False])
async def test_a_stage_that_is_cancelled_while_it_is_created_does_not_stay_pending(wanted: bool) -> None:
    """Its run may exist although nobody has heard so; when the worker goes away, its next start goes on with it."""
    client, identity = RunClient(), RunIdentity(name="a", key="a")
    made = MlocEngine(flow=build_flow(graph({"a": ([], {})})), parameters={}, identity=identity)
    with use_run_context(RunContext(wants_cancellation=lambda: wanted)):
        creating = asyncio.create_task(made.create_flow_run(client))  # type: ignore[arg-type]
    while not client.asked:
        await asyncio.sleep(0)
    creating.cancel()
    await asyncio.sleep(0)
    client.answer.set()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert client.created.is_set()
    assert client.states == ([(client.run.id, StateType.CANCELLED)] if wanted else [])
