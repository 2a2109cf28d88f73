"""The table from stage runs to records and messages."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mloc_prefect.store import transitions
from mloc_prefect.store.interfaces import TASK_EVENTS, TASKS, WORKER_EVENTS
from mloc_prefect.store.states import Phase, StatusMark
from mloc_prefect.store.transitions import AttemptLocation
from tests.support.records import record

OURS, THEIRS = AttemptLocation("w-1"), AttemptLocation("w-9", "original", "run-1")
T0 = "2026-01-01T00:00:00+00:00"
AT = 1767225600.0  # T0
LATER = AT + 2.5


def at_work(**changes):
    base = record(
        mark=StatusMark(1, Phase.STARTED), submitted_ts=AT - 1, dispatched_ts=AT, started_ts=AT, protocol="ours"
    )
    return replace(base, assigned_worker="w-1", topic="tasks", category="inference", **changes)


def test_dispatch_has_the_message_of_the_protocol_and_a_status_without_extra():
    step = transitions.placed(record(), 1, OURS, AT)
    assert step.mark == StatusMark(1, Phase.DISPATCHED)
    assert step.changes["assigned_worker"] == "w-1"
    assert step.changes["topic"] == "tasks"
    (channel, task), (other, status) = step.messages
    assert (channel, other) == (TASKS, WORKER_EVENTS)
    assert list(task) == ["task_id", "task", "task_type", "assigned_worker", "dispatched_at", "parent_task_id"]
    assert (task["task"], task["dispatched_at"], task["parent_task_id"]) == ({"a": 1}, T0, None)
    assert (status["type"], status["worker_id"], status["status"], status["ts"]) == ("STATUS", "w-1", "RUNNING", T0)
    assert "extra" not in status
    assert status["payload"] == {}


def test_a_shard_says_which_it_is():
    (_, task), _ = transitions.placed(record(parent_task_id="p", shard_index=1, shard_total=3), 1, OURS, AT).messages
    assert (task["parent_task_id"], task["shard_index"], task["shard_total"]) == ("p", 1, 3)


def test_start_has_the_keys_of_both_generations():
    (channel, event), (_, status) = transitions.started(record(), 2, OURS, AT).messages
    assert channel == TASK_EVENTS
    assert event == {
        "type": "TASK_STARTED",
        "ts": T0,
        "worker_id": "w-1",
        "task_id": "t1",
        "status": None,
        "error": None,
        "payload": {"taskType": "echo", "dispatched_at": T0, "started_at": T0, "attempt": 2},
    }
    assert status["extra"] == status["payload"] == {"task_id": "t1"}


def test_success():
    step = transitions.done(at_work(), 1, LATER)
    (_, event), (_, status) = step.messages
    assert (event["type"], event["result"], event["error"]) == ("TASK_SUCCEEDED", {}, None)
    assert event["payload"]["runtime_sec"] == 2.5
    assert (status["status"], status["extra"]) == ("IDLE", {"last_task": "t1"})
    assert step.changes == {"error": None, "next_retry_at": None, "last_failed_worker": None, "finished_ts": LATER}
    assert step.add["tasks_succeeded"] == 1
    assert step.add["overall_execution_total_sec"] == step.add["inference_execution_total_sec"] == 2.5
    assert step.add["overall_queue_total_sec"] == 1


def test_a_worker_with_other_tasks_is_not_idle():
    _, (_, status) = transitions.done(at_work(), 1, LATER, busy=True).messages
    assert (status["status"], status["extra"]) == ("RUNNING", {"last_task": "t1"})


def test_a_failure_with_attempts_left_waits_for_the_next():
    step = transitions.retried(at_work(), 1, error="boom", worker=None, next_retry_at=T0, at=LATER)
    assert step.mark == StatusMark(2, Phase.WAITING)
    assert (step.changes["next_retry_at"], step.changes["last_failed_worker"]) == (T0, "w-1")
    assert (step.changes["assigned_worker"], step.changes["topic"]) == (None, None)
    (_, event), (_, status) = step.messages
    assert (event["type"], event["error"], event["payload"]["attempt"]) == ("TASK_FAILED", "boom", 1)
    assert status["status"] == "IDLE"


def test_the_last_failed_worker_is_forgotten_with_the_next_dispatch_and_with_success():
    """As in the original, which clears it after a publish; a failed record keeps it."""
    record_ = at_work(last_failed_worker="w-0")
    assert transitions.placed(record_, 2, OURS, AT).changes["last_failed_worker"] is None
    assert transitions.done(record_, 2, LATER).changes["last_failed_worker"] is None
    assert transitions.failed(record_, 4, "boom", LATER).changes["last_failed_worker"] == "w-1"


def test_the_last_failure_and_a_cancellation():
    step = transitions.failed(at_work(mark=StatusMark(4, Phase.STARTED)), 4, "boom", LATER)
    assert (step.mark, step.changes["error"]) == (StatusMark(4, Phase.FAILED), "boom")
    step = transitions.cancelled(at_work(), 1, LATER)
    assert (step.mark.phase, step.messages[0][1]["error"]) == (Phase.CANCELLED, "cancelled")


def test_a_task_that_never_was_anywhere_makes_no_worker_idle():
    ((channel, event),) = transitions.failed(record(), 1, "bad reference", AT).messages
    assert (channel, event["worker_id"], event["payload"]["runtime_sec"]) == (TASK_EVENTS, None, None)


def test_a_divided_task_speaks_for_itself_but_for_no_worker():
    """Documented in docs/compatibility.md: who waits for a task by its messages hears of a divided one, too."""
    whole = replace(at_work(), assigned_worker="MULTI")
    started = transitions.started(whole, 1, AttemptLocation("MULTI"), AT).messages
    ended = transitions.done(whole, 1, LATER).messages
    assert [(channel, m["type"], m["worker_id"]) for channel, m in (*started, *ended)] == [
        (TASK_EVENTS, "TASK_STARTED", "MULTI"),
        (TASK_EVENTS, "TASK_SUCCEEDED", "MULTI"),
    ]


@pytest.mark.parametrize(
    "step",
    [
        transitions.placed(record(), 1, THEIRS, AT),
        transitions.started(record(), 1, THEIRS, AT),
        transitions.done(replace(at_work(), protocol="original"), 1, LATER),
        transitions.failed(replace(at_work(), protocol="original"), 1, "boom", LATER),
        transitions.retried(
            replace(at_work(), protocol="original"), 1, error="b", worker="w", next_retry_at=None, at=LATER
        ),
    ],
)
def test_workers_of_the_original_protocol_speak_for_themselves(step):
    assert step.messages == ()


def test_waiting_says_why():
    step = transitions.waiting(3, "no GPU is free")
    assert (step.mark, step.changes["error"], step.messages) == (StatusMark(3, Phase.WAITING), "no GPU is free", ())
