"""What becomes of the runs of a worker that is gone."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from mloc_prefect.cluster.identity import WorkerProcess
from mloc_prefect.cluster.run_recovery import RecoveryCause, RunRecovery
from mloc_prefect.prefect_ext.run_facts import stopped_starts
from mloc_prefect.prefect_ext.state_reasons import StateCode, StateReason, reason_of
from tests.support.cards import card
from tests.support.recovery_server import DEAD, Server, run

LOST = StateReason(StateCode.WORKER_LOST, "w", DEAD.incarnation)


async def test_a_root_run_starts_again_with_all_below_it_ended():
    server = Server(
        run("root", "run-workflow", "RUNNING"),
        run("stage", "mloc-echo", "RUNNING", worker=None, parent="root"),
        run("done", "mloc-echo", "COMPLETED", worker=None, parent="root"),
        run("elsewhere", "run-stage", "RUNNING", worker="other", parent="stage"),
        run("shard", "mloc-shard", "RUNNING", worker=None, parent="stage"),  # nobody else would ever end it
    )
    assert await server.recover() == [
        "elsewhere Cancelling asked",
        "shard Crashed",
        "stage Crashed",
        "root Crashed",
        "root AwaitingRetry",
    ]
    assert server.runs["root"]["state"]["message"] == "worker w was lost; start 2 of 4"


async def test_the_budget_of_starts_ends():
    server = Server(run("root", "run-workflow", "RUNNING", run_count=4))
    assert await server.recover() == ["root Crashed"]


async def test_stops_on_purpose_are_not_in_the_budget():
    server = Server(run("root", "run-workflow", "RUNNING"))
    recovery = RunRecovery(server, 1)  # type: ignore[arg-type]
    for start in range(1, 6):
        server.runs["root"] |= {"state": {"type": "CRASHED", "message": None}, "run_count": start}
        await recovery.start_again(server.runs["root"], RecoveryCause.stopped(DEAD))
        state = server.runs["root"]["state"]
        assert (state["type"], state["message"]) == ("SCHEDULED", "worker w was stopped")
    assert stopped_starts(server.runs["root"]["labels"]) == {1, 2, 3, 4, 5}
    for start, state in ((6, "SCHEDULED"), (7, "CRASHED")):  # of losses one is in the budget
        server.runs["root"] |= {"state": {"type": "RUNNING", "message": None}, "run_count": start}
        await server.recover(retries=1)
        assert server.runs["root"]["state"]["type"] == state


async def test_what_a_stopped_worker_has_not_begun_goes_back():
    server = Server(
        run("root", "run-workflow", "PENDING", infrastructure_pid="host:1"),
        run("stage", "run-stage", "PENDING"),
        run("user", "user", "PENDING"),
        run("starting", "user", "PENDING", infrastructure_pid="host:2"),
        run("running", "run-workflow", "RUNNING"),
        run("other", "run-stage", "PENDING", worker="other"),
    )
    await RunRecovery(server, 3).put_back(DEAD, RecoveryCause.stopped(DEAD))  # type: ignore[arg-type]
    assert server.steps == ["root AwaitingRetry", "stage AwaitingRetry", "user AwaitingRetry"]


async def test_a_stage_run_is_lost_for_whoever_waits_for_it():
    assert await Server(run("stage", "run-stage", "RUNNING")).recover() == ["stage Crashed"]


@pytest.mark.parametrize("flow", ["run-workflow", "run-stage", "user"])
async def test_what_had_not_begun_goes_back(flow: str):
    assert await Server(run("r", flow, "PENDING")).recover() == ["r AwaitingRetry"]


@pytest.mark.parametrize("flow", ["run-workflow", "run-stage"])
async def test_what_was_being_cancelled_is_cancelled(flow: str):
    assert await Server(run("r", flow, "CANCELLING")).recover() == ["r Cancelled"]


@pytest.mark.parametrize(
    "other",
    [
        run("r", "run-workflow", "RUNNING", worker="other"),
        run("r", "run-workflow", "RUNNING", incarnation="i2"),
        run("r", "run-workflow", "PENDING", incarnation="i2"),
        run("r", "run-workflow", "PENDING", worker=None),
        run("r", "run-workflow", "SCHEDULED"),
        run("r", "run-workflow", "CRASHED"),
    ],
)
async def test_runs_of_others_are_left_alone(other: Any):
    assert await Server(other).recover() == []


async def test_a_run_that_somebody_else_has_by_now_is_left_alone():
    """The list of a large recovery is old when its last run has its turn."""
    server = Server(run("root", "run-workflow", "RUNNING"), run("stage", "run-stage", "PENDING"))
    found = server.found

    def then_others_came(body: Any) -> list[Any]:
        listed = found(body)
        server.runs["root"] = run("root", "run-workflow", "RUNNING", worker="other")
        server.runs["stage"] = run("stage", "run-stage", "PENDING", incarnation="i2")
        return listed

    server.found = then_others_came  # type: ignore[method-assign]
    assert await server.recover() == []


async def test_many_runs_are_recovered_several_at_once():
    runs = [run(f"root-{number}", "run-workflow", "RUNNING") for number in range(40)]
    server, at_once, most = Server(*runs), 0, 0
    request = server.request

    async def slow(*arguments: Any, **named: Any) -> Any:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1
        return await request(*arguments, **named)

    server.request = slow  # type: ignore[method-assign]
    assert len(await server.recover()) == 80
    assert 2 <= most <= 8


async def test_only_named_runs_are_recovered():
    server = Server(run("one", "run-workflow", "RUNNING"))
    asked: list[Any] = []
    found = server.found

    def noted(body: Any) -> list[Any]:
        asked.append(body["flow_runs"].get("id"))
        return found(body)

    server.found = noted  # type: ignore[method-assign]
    one = uuid4()
    await RunRecovery(server, 3).recover(DEAD, only=[one])  # type: ignore[arg-type]
    assert asked[:2] == [{"any_": [str(one)]}] * 2


async def test_half_a_recovery_is_finished():
    """The process that was lost between the two steps has marked the run as crashed."""
    state = {"type": "CRASHED", "message": "any text", "state_details": LOST.as_details()}
    assert await Server(run("root", "run-workflow", "CRASHED") | {"state": state}).recover() == ["root AwaitingRetry"]


async def test_half_a_recovery_of_the_version_before_is_finished():
    server = Server(run("root", "run-workflow", "CRASHED", message="worker w was lost"))
    assert await server.recover() == ["root AwaitingRetry"]


@pytest.mark.parametrize(("incarnation", "steps"), [("i1", ["r AwaitingRetry"]), ("i2", [])])
async def test_a_claim_is_known_by_its_code(incarnation: str, steps: list[str]):
    claim = StateReason(StateCode.CLAIMED, "w", incarnation)
    state = {"type": "PENDING", "message": None, "state_details": claim.as_details()}
    assert await Server(run("r", "run-stage", "PENDING") | {"state": state}).recover() == steps


async def test_states_of_a_recovery_say_their_reason_in_a_code():
    server = Server(run("root", "run-workflow", "RUNNING"), run("stage", "run-stage", "RUNNING"))
    await server.recover()
    assert [reason_of(server.runs[name]["state"]) for name in ("root", "stage")] == [LOST, LOST]


async def test_a_process_of_its_own_may_go_on_without_the_worker():
    assert await Server(run("user", "user", "RUNNING", infrastructure_pid="host:1")).recover() == []
    near = card("w", process=WorkerProcess.own())
    gone = Server(run("user", "user", "RUNNING", infrastructure_pid="999999999"))
    assert await gone.recover(near) == ["user Crashed"]
