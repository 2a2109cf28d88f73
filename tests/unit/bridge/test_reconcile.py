"""Comparing records with Prefect, and rebuilding them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from mloc_prefect.bridge.event_consumer import EventConsumer
from mloc_prefect.bridge.memory_runs import MemorySource
from mloc_prefect.bridge.prefect_runs import RunTags
from mloc_prefect.bridge.rebuild import Rebuilder
from mloc_prefect.bridge.reconcile import ASK_SECONDS, CRASH_SECONDS, KEPT_SECONDS, LEFT, Reconciler
from mloc_prefect.store.states import Phase, StatusMark
from tests.support.bridging import (
    HAPPY,
    BridgeBench,
    running,
    stage_event,
    started,
    state,
    until,
    view,
    workflow_run,
)
from tests.support.flows import graph_text


def reconciler(bench: BridgeBench, now: float) -> Reconciler:
    return Reconciler(
        bench.stores.tasks, bench.projector, bench.runs, clock=lambda: now, sleep=lambda _seconds: asyncio.sleep(0)
    )


async def test_a_lost_end_is_found_with_what_led_to_it():
    bench = BridgeBench(workflow_run(), view(since=100))
    await bench.submitted()
    bench.runs.kept = started()
    await reconciler(bench, 100 + KEPT_SECONDS - 1).compare_once()
    assert bench.messages == [], "its events may not be kept yet"
    await reconciler(bench, 100 + KEPT_SECONDS).compare_once()
    assert bench.messages == HAPPY


async def test_a_malformed_stored_event_does_not_stop_the_comparison(caplog):
    bench = BridgeBench(workflow_run(), view(since=100))
    await bench.submitted()
    bench.runs.kept = [stage_event("shard"), stage_event("placed", attempt="not a number"), *started()]
    await reconciler(bench, 100 + KEPT_SECONDS).compare_once()
    assert bench.messages == HAPPY
    assert caplog.text.count("could not be handled") == 2
    assert "Traceback" not in caplog.text


async def test_a_malformed_submission_does_not_stop_the_comparison_of_others(caplog, monkeypatch):
    bench = BridgeBench(workflow_run(), view(since=100), workflow_run(run="root-2", submission="s2"))
    bench.runs.put(view(run="run-t2", task="t2", submission="s2", since=100))
    await bench.submitted("t1", submission="s1")
    await bench.submitted("t2", submission="s2")
    end_task = bench.projector.end_task

    async def fails(run, record=None):
        if run.id == "run-t1":
            raise KeyError("malformed")
        await end_task(run, record)

    monkeypatch.setattr(bench.projector, "end_task", fails)
    await reconciler(bench, 200).compare_once()
    assert [(await bench.record(t)).status for t in ("t1", "t2")] == ["PENDING", "DONE"]
    assert "submission s1 could not be handled: KeyError: 'malformed'" in caplog.text


async def test_the_end_of_a_task_known_to_run_needs_no_events():
    bench = BridgeBench(workflow_run(), view(since=100))
    await bench.submitted()
    for event in started():
        await bench.projector.apply(event)
    await reconciler(bench, 101).compare_once()
    assert (await bench.record()).status == "DISPATCHED", "the event may still come"
    await reconciler(bench, 102.5).compare_once()
    assert (await bench.record()).status == "DONE"


async def test_a_lost_start_is_found_and_not_asked_for_all_the_time():
    bench = BridgeBench(workflow_run(), view("RUNNING", since=100))
    await bench.submitted()
    now = [100 + KEPT_SECONDS]
    looks = Reconciler(bench.stores.tasks, bench.projector, bench.runs, clock=lambda: now[0])
    await looks.compare_once()
    bench.runs.kept = started()
    now[0] += ASK_SECONDS - 1
    await looks.compare_once()
    assert bench.messages == []
    now[0] += 2
    await looks.compare_once()
    assert (await bench.record()).mark == StatusMark(1, Phase.STARTED)


async def test_unattended_runs_are_compared_by_state():
    bench = BridgeBench(view("RUNNING", since=100, stage=None, run_count=1))
    await bench.submitted()
    await reconciler(bench, 103).compare_once()
    assert (await bench.record()).mark == StatusMark(1, Phase.STARTED)
    bench.runs.put(view("FAILED", since=110, stage=None, message="boom"))
    await reconciler(bench, 113).compare_once()
    assert ((await bench.record()).status, (await bench.record()).error) == ("FAILED", "boom")


async def test_runs_are_looked_for_by_their_tags_only_now_and_then(monkeypatch):
    now = [1000.0]
    bench = BridgeBench(workflow_run(), view("RUNNING", since=900.0))
    await bench.submitted()
    tagged = bench.runs.of_submissions
    asked: list[float] = []

    async def by_tags(names):
        asked.append(now[0])
        return await tagged(names)

    monkeypatch.setattr(bench.runs, "of_submissions", by_tags)
    reconciler = Reconciler(bench.stores.tasks, bench.projector, bench.runs, clock=lambda: now[0])
    for _ in range(14):
        await reconciler.compare_once()
        now[0] += 5.0
    assert asked == [1000.0, 1035.0]


async def test_an_unattended_run_below_no_root_is_found_between_the_searches():
    now = [1000.0]
    bench = BridgeBench(view("RUNNING", since=900.0, stage=None))
    await bench.submitted()
    reconciler = Reconciler(bench.stores.tasks, bench.projector, bench.runs, clock=lambda: now[0])
    await reconciler.compare_once()
    assert (await bench.record()).mark.phase is Phase.STARTED
    bench.runs.put(view("COMPLETED", since=1001.0, stage=None))
    now[0] += 5.0
    await reconciler.compare_once()
    assert (await bench.record()).mark.phase is Phase.DONE


async def test_a_crashed_workflow_run_gets_its_time():
    bench = BridgeBench(workflow_run("CRASHED", since=100, message="worker lost"))
    await bench.submitted()
    await reconciler(bench, 100 + CRASH_SECONDS - 1).compare_once()
    assert (await bench.record()).status == "PENDING"
    await reconciler(bench, 100 + CRASH_SECONDS + 1).compare_once()
    assert (await bench.record()).error == "worker lost"


async def test_a_deleted_run_fails_its_tasks_but_one_that_is_not_made_yet_does_not():
    bench = BridgeBench()
    await bench.submitted()
    await reconciler(bench, 100).compare_once()
    assert (await bench.record()).status == "PENDING"
    await bench.stores.tasks.dispatched("s1", "root-1")
    await reconciler(bench, 100).compare_once()
    assert (await bench.record()).error == "its run was deleted in Prefect"


async def test_a_run_of_another_prefect_is_left_alone_as_long_as_its_process_is_heard_of():
    bench = BridgeBench()
    elsewhere = Rebuilder(bench.stores.tasks, bench.settings, attended_until=lambda: 300.0)
    await elsewhere.from_workflow_run(workflow_run(parameters={"spec": graph_text({"a": ([], {})})}))
    (made,) = await bench.stores.tasks.list()
    await reconciler(bench, 299).compare_once()
    assert (await bench.record(made.task_id)).status == "PENDING"
    await bench.stores.tasks.attend("s1", 600)
    await reconciler(bench, 301).compare_once()
    assert (await bench.record(made.task_id)).status == "PENDING"
    await reconciler(bench, 601).compare_once()
    assert (await bench.record(made.task_id)).error == LEFT


async def test_runs_at_work_without_records_get_them():
    spec = graph_text({"a": ([], {})})
    bench = BridgeBench(workflow_run(parameters={"spec": spec}, since=100))
    await reconciler(bench, 200).compare_once()
    assert [r.submission_id for r in await bench.stores.tasks.list()] == ["s1"]


async def test_attempts_on_the_pool_are_neither_tasks_nor_submissions():
    tags = RunTags.of({"mloc", "mloc-attempt:t1"})
    bench = BridgeBench(replace(view("RUNNING", run="attempt-1", since=100), tags=tags))
    await reconciler(bench, 200).compare_once()
    await reconciler(bench, 200).rebuild(quiet=True)
    event = state("Running", run="attempt-1", task=None, submission=None)
    await bench.projector.apply(replace(event, tags=frozenset({"mloc", "mloc-attempt:t1"})))
    source = MemorySource()
    source.put(replace(state("Completed", run="attempt-1", at=100), tags=frozenset({"mloc", "mloc-attempt:t1"})))
    bench.runs.put(replace(view("COMPLETED", run="attempt-1", since=100), tags=tags))
    async with running(EventConsumer(source, bench.projector, bench.runs).consume_events()):
        await until(lambda: not source.pending)
    assert await bench.stores.tasks.submission("attempt-1") is None
    assert await bench.stores.tasks.list() == []


@pytest.mark.parametrize("quiet", [True, False])
async def test_lost_records_are_rebuilt_as_they_were(quiet):
    bench = BridgeBench(
        workflow_run("COMPLETED"), view(run="r1", name="n:a"), view("RUNNING", run="r2", task="t2", name="n:b")
    )
    bench.runs.put(replace(bench.runs.views["root-1"], type="RUNNING"))
    bench.runs.kept = [
        stage_event("shard", run="r1"),
        *started("r1"),
        *started("r2", "t2"),
    ]  # the first lacks its facts
    await reconciler(bench, 30).rebuild(quiet=quiet)
    assert ((await bench.record()).status, (await bench.record("t2")).mark) == ("DONE", StatusMark(1, Phase.STARTED))
    assert bench.messages == ([] if quiet else [*HAPPY[:4] * 2, "TASK_SUCCEEDED", "STATUS RUNNING"])
    assert bool(await bench.stores.tasks.tally()) is not quiet
    await bench.projector.end_task(view(run="r2", task="t2"))
    assert "TASK_SUCCEEDED" in bench.messages, "what happens after it is news"
