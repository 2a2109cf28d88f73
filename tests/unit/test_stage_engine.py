"""Contract with Prefect's engine: what `orchestrate.engine` overrides and calls must be there."""

from __future__ import annotations

import inspect

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import FlowRunCreate
from prefect.context import FlowRunContext, TagsContext
from prefect.flow_engine import AsyncFlowRunEngine
from prefect.tasks import Task

from mloc_prefect.orchestrate import engine
from mloc_prefect.orchestrate.coordinate import root_identity
from mloc_prefect.orchestrate.engine import INHERITED, MlocEngine, RunIdentity
from mloc_prefect.orchestrate.flow import WorkflowFlow, build_flow, end_state, flow_name
from mloc_prefect.orchestrate.options import RunOptions
from mloc_prefect.orchestrate.outcome import StageOutcome, WorkflowOutcome
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
