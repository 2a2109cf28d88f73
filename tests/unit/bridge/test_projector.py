"""Events and runs become steps of records."""

from __future__ import annotations

import pytest

from mloc_prefect.bridge.event_sources import parse
from mloc_prefect.bridge.projector import BY_HAND, LATE
from mloc_prefect.prefect_ext.state_reasons import StateCode
from mloc_prefect.store.states import Phase, StatusMark
from tests.support.bridging import WORKER, BridgeBench, stage_event, state, view, workflow_run
from tests.support.flows import graph_text
from tests.support.records import record, submission

HAPPY = ["tasks", "STATUS RUNNING", "TASK_STARTED", "STATUS RUNNING", "TASK_SUCCEEDED", "STATUS IDLE"]
RETRY = ["tasks", "STATUS RUNNING", "TASK_STARTED", "STATUS RUNNING", "TASK_FAILED", "STATUS IDLE"]


async def apply(bench: BridgeBench, *events) -> None:
    for event in events:
        await bench.projector.apply(event)


async def test_the_stage_runner_tells_the_life_of_a_task():
    bench = BridgeBench()
    await bench.submitted()
    await apply(bench, state("Pending"), state("Running"))
    assert (await bench.record()).mark == StatusMark(1, Phase.PENDING), "an attended run says nothing by its states"
    await apply(bench, stage_event("waiting", reason="no room"))
    waiting = await bench.record()
    assert (waiting.status, waiting.error) == ("WAITING", "no room")
    await apply(bench, stage_event("waiting", reason="two before it"))
    assert (await bench.record()).error == "two before it"
    await apply(bench, stage_event("placed", **WORKER))
    placed = await bench.record()
    assert (placed.status, placed.assigned_worker, placed.flow_run) == ("DISPATCHED", "w-1", "run-t1")
    assert (placed.error, placed.protocol) == (None, "ours")
    await apply(bench, stage_event("started", at=11.0, **WORKER))
    await bench.projector.end_task(view(since=13.5))
    done = await bench.record()
    assert (done.status, done.finished_ts, done.assigned_worker) == ("DONE", 13.5, "w-1")
    assert bench.messages == HAPPY


async def test_attempts_and_the_last_failure():
    bench = BridgeBench()
    await bench.submitted()
    for attempt in (1, 2):
        await apply(bench, stage_event("placed", attempt, **WORKER), stage_event("started", attempt, **WORKER))
        await apply(bench, stage_event("failed", attempt, error="boom", final=False, next_retry_at="soon", **WORKER))
    waiting = await bench.record()
    assert (waiting.mark, waiting.retries, waiting.next_retry_at) == (StatusMark(3, Phase.WAITING), 2, "soon")
    await apply(bench, stage_event("placed", 3, **WORKER), stage_event("started", 3, **WORKER))
    await apply(bench, stage_event("failed", 3, error="boom", final=True, **WORKER))
    assert (await bench.record()).status == "DISPATCHED", "the state of the run says that it was the last"
    await bench.projector.end_task(view("FAILED", message="boom"))
    failed = await bench.record()
    assert (failed.status, failed.error, failed.retries, failed.attempts) == ("FAILED", "boom", 3, 3)
    assert bench.messages == RETRY * 3


async def test_what_comes_twice_or_late_changes_and_sends_nothing():
    bench = BridgeBench()
    await bench.submitted()
    events = [stage_event("placed", **WORKER), stage_event("started", **WORKER)]
    await apply(bench, *events, *events)
    await bench.projector.end_task(view())
    await bench.projector.end_task(view("FAILED"))
    await apply(bench, *events, stage_event("failed", error="late", final=False))
    assert bench.messages == HAPPY
    assert (await bench.record()).status == "DONE"


async def test_an_attempt_that_goes_on_at_another_original_worker_shows_it():
    bench = BridgeBench()
    await bench.submitted()
    first, second = ({"worker": name, "protocol": "original"} for name in ("o-1", "o-2"))
    await apply(bench, stage_event("placed", **first), stage_event("started", **first), stage_event("placed", **second))
    moved = await bench.record()
    assert (moved.mark, moved.assigned_worker, moved.last_failed_worker) == (StatusMark(1, Phase.STARTED), "o-2", "o-1")
    await bench.projector.end_task(view())
    await apply(bench, stage_event("placed", **first))
    assert (await bench.record()).assigned_worker == "o-2"
    assert bench.messages == []


async def test_the_state_knows_of_the_last_attempt_when_its_labels_come_later():
    bench = BridgeBench()
    await bench.submitted()
    late = view("FAILED", message="boom", code=StateCode.LAST_ATTEMPT, last_attempt=4)
    await bench.projector.end_task(late)
    assert (await bench.record()).retries == 4


async def test_labels_know_of_attempts_whose_events_were_lost():
    bench = BridgeBench()
    await bench.submitted()
    await bench.projector.end_task(view("FAILED", labels={"mloc.attempt": 4}, message="boom"))
    assert (await bench.record()).mark == StatusMark(4, Phase.FAILED)


async def test_a_run_without_our_stage_runner_speaks_by_its_states():
    bench = BridgeBench()
    await bench.submitted()
    await apply(bench, state("Late", stage=None))
    assert (await bench.record()).error == LATE
    await apply(bench, state("Pending", stage=None, run_count=0), state("Running", stage=None))
    await apply(bench, state("AwaitingRetry", stage=None, message="boom"))
    assert (await bench.record()).mark == StatusMark(2, Phase.WAITING)
    await apply(bench, state("Pending", stage=None), state("Running", stage=None, run_count=2))
    await bench.projector.end_task(view(stage=None, message="All good"))
    assert (await bench.record()).mark == StatusMark(2, Phase.DONE)
    assert bench.messages == RETRY + HAPPY


async def test_a_completion_by_hand_is_no_result():
    bench = BridgeBench()
    await bench.submitted()
    await bench.projector.end_task(view(message="looks fine to me", code=None))
    assert ((await bench.record()).status, (await bench.record()).error) == ("FAILED", BY_HAND)


async def test_a_cancelled_run():
    bench = BridgeBench()
    await bench.submitted()
    await apply(bench, stage_event("placed", **WORKER))
    await bench.projector.end_task(view("CANCELLED", message="by its user"))
    assert ((await bench.record()).status, (await bench.record()).error) == ("CANCELLED", "cancelled")
    assert bench.messages == ["tasks", "STATUS RUNNING", "TASK_FAILED", "STATUS IDLE"]


async def test_a_crashed_stage_waits_for_another_start_of_its_run():
    bench = BridgeBench()
    await bench.submitted()
    await apply(bench, stage_event("placed", **WORKER), stage_event("started", **WORKER))
    await bench.projector.end_task(view("CRASHED", message="lost"))
    assert (await bench.record()).mark == StatusMark(2, Phase.WAITING)
    await bench.projector.end_task(view("CRASHED", message="lost"))
    assert bench.messages == RETRY, "seen again it is still one crash"
    await bench.projector.end_workflow_run(workflow_run("CRASHED"))
    assert (await bench.record()).status == "WAITING"
    await bench.projector.end_workflow_run(workflow_run("CRASHED", message="the worker is gone"), crashed=True)
    assert ((await bench.record()).status, (await bench.record()).error) == ("FAILED", "the worker is gone")


async def test_a_crash_that_is_heard_of_late_does_not_end_the_attempt_that_followed():
    bench = BridgeBench()
    await bench.submitted()
    await apply(bench, stage_event("placed", **WORKER), stage_event("started", **WORKER))
    await apply(
        bench, stage_event("placed", 2, run="run-2", **WORKER), stage_event("started", 2, run="run-2", **WORKER)
    )
    await bench.projector.end_task(view("CRASHED", message="lost"))
    assert (await bench.record()).mark == StatusMark(2, Phase.STARTED)
    await bench.projector.end_task(view(run="run-2"))
    assert ((await bench.record()).status, (await bench.record()).mark.attempt) == ("DONE", 2)


async def test_a_root_run_that_failed_before_its_stages_fails_all_tasks():
    bench = BridgeBench(workflow_run("FAILED", message="bad.yaml:3:1 no such stage"))
    await bench.submitted("t1", "t2")
    await bench.projector.end_workflow_run(bench.runs.views["root-1"])
    for task_id in ("t1", "t2"):
        ended = await bench.record(task_id)
        assert (ended.status, ended.error) == ("FAILED", "bad.yaml:3:1 no such stage")
    assert bench.messages == ["TASK_FAILED", "TASK_FAILED"]


async def test_the_end_of_a_root_run_ends_what_it_left_behind():
    stages = [view(run="r1"), view("RUNNING", run="r2", task="t2")]
    bench = BridgeBench(workflow_run("CANCELLED"), *stages)
    await bench.submitted("t1", "t2", "t3")
    await bench.projector.end_workflow_run(bench.runs.views["root-1"])
    assert [(await bench.record(t)).status for t in ("t1", "t2", "t3")] == ["DONE", "CANCELLED", "CANCELLED"]


async def test_a_dependant_is_told_by_the_name_of_the_task_it_needs():
    bench = BridgeBench()
    above = record("t0", submission_id="s1", mark=StatusMark(1, Phase.FAILED))
    below = record("t1", submission_id="s1", depends_on=("t0",))
    await bench.stores.tasks.submit(submission("s1", "t0", "t1"), [above, below])
    await bench.projector.end_task(view("FAILED", message="not run: stage 'x' failed", code=StateCode.NOT_RUN))
    assert (await bench.record()).error == "Dependency t0 failed"


# --- runs that were started elsewhere ---------------------------------------------------------------------------------

SPEC = graph_text({"a": ([], {}), "b": (["a"], {})}, name="elsewhere")


async def test_records_are_made_from_the_spec_of_the_root_run():
    started = workflow_run(submission=None, run="0d5f6f0c-7c55-4c36-8a57-3a4f86a4a0f1", created=5.0)
    bench = BridgeBench(started)
    bench.runs.put(
        workflow_run(run=started.id, submission=None, parameters={"spec": SPEC, "file": "x.yaml"}, created=5.0)
    )
    await apply(bench, state("Running", run=started.id, task=None, submission=None))
    first, second = await bench.stores.tasks.list()
    assert (first.name, first.status, second.depends_on) == ("elsewhere:a", "PENDING", (first.task_id,))
    assert (first.raw_yaml, first.submission_id, first.submitted_ts) == (SPEC, started.id, 5.0)
    made = await bench.stores.tasks.submission(started.id)
    assert (made.flow_run, made.file, made.task_ids) == (started.id, "x.yaml", (first.task_id, second.task_id))
    asked = bench.runs.asked
    await apply(bench, state("Running", run=started.id, task=None, submission=None))
    assert bench.runs.asked == asked, "a known submission needs no look"


@pytest.mark.parametrize("parameters", [{}, {"spec": "no: spec"}, {"spec": "sha256:" + "0" * 64}])
async def test_without_a_readable_spec_tags_make_the_record(parameters):
    bench = BridgeBench(workflow_run(parameters=parameters), view("RUNNING", name="base:a"))
    await apply(bench, stage_event("placed", **WORKER))
    made = await bench.record()
    assert (made.status, made.name, made.graph_node_name, made.task_type) == ("DISPATCHED", "base:a", "a", "echo")
    assert made.submission_id == "s1"


async def test_tags_alone_make_a_record():
    bench = BridgeBench()
    await apply(bench, stage_event("placed", submission=None, **WORKER))
    assert ((await bench.record()).status, (await bench.record()).submission_id) == ("DISPATCHED", None)


# --- events -----------------------------------------------------------------------------------------------------------


def test_events_of_others_are_left_out():
    event = {
        "id": "e1",
        "event": "prefect.flow-run.Running",
        "occurred": "2026-01-01T00:00:00Z",
        "resource": {
            "prefect.resource.id": "prefect.flow-run.r1",
            "prefect.state-type": "RUNNING",
            "prefect.run-count": "2",
            "prefect.state-message": None,
        },
        "related": [{"prefect.resource.id": "prefect.tag.mloc"}, {"prefect.resource.id": "prefect.tag.mloc-task:t"}],
        "payload": {"intended": {}},
    }
    found = parse(event)
    assert (found.run_id, found.type, found.run_count, found.at) == ("r1", "RUNNING", 2, 1767225600.0)
    assert found.tags == {"mloc", "mloc-task:t"}
    assert parse(event | {"related": []}) is None
    assert parse(event | {"event": "prefect.flow-run.heartbeat"}) is None
    assert parse(event | {"event": "prefect.task-run.Running"}) is None
