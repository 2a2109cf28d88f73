"""Messages to and from workers of the original protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.mloc_workers.messages import WorkerReport, parse_report, task_message
from mloc_prefect.store.interfaces import TASK_EVENTS, TASKS, WORKER_EVENTS

if TYPE_CHECKING:
    pass
from tests.support.mloc_site import job


@pytest.mark.parametrize(
    ("channel", "message", "expected"),
    [
        (TASK_EVENTS, {"type": "TASK_SUCCEEDED", "task_id": "t", "result": {}}, WorkerReport("succeeded", "w", "t")),
        (TASK_EVENTS, {"type": "task_failed", "task_id": "t", "error": "no"}, WorkerReport("failed", "w", "t", "no")),
        (TASK_EVENTS, {"type": "TASK_FAILED", "task_id": "t"}, WorkerReport("failed", "w", "t", "worker failed")),
        (
            TASK_EVENTS,
            {"type": "TASK_SUCCEEDED", "task_id": "t", "status": None, "payload": {"dispatched_at": "d"}},
            WorkerReport("succeeded", "w", "t", None, "d"),
        ),
        (TASK_EVENTS, {"type": "TASK_STARTED", "task_id": "t", "payload": {}}, WorkerReport("began", "w", "t")),
        (TASK_EVENTS, {"type": "TASK_SUCCEEDED", "task_id": "  "}, None),
        (TASK_EVENTS, {"type": "TASK_REQUEUED", "task_id": "t"}, None),
        (
            WORKER_EVENTS,
            {"type": "STATUS", "status": "RUNNING", "extra": {"task_id": "t"}},
            WorkerReport("began", "w", "t"),
        ),
        (
            WORKER_EVENTS,
            {"type": "STATUS", "status": "RUNNING", "payload": {"task_id": "t"}},
            WorkerReport("began", "w", "t"),
        ),
        (WORKER_EVENTS, {"type": "STATUS", "status": "RUNNING"}, None),
        (
            WORKER_EVENTS,
            {"type": "STATUS", "status": "IDLE", "extra": {"last_task": "t"}},
            WorkerReport("idle", "w", "t"),
        ),
        (WORKER_EVENTS, {"type": "UNREGISTER", "payload": {}}, WorkerReport("stopped", "w")),
        (WORKER_EVENTS, {"type": "REGISTER", "status": "STARTING"}, WorkerReport("registered", "w")),
        (WORKER_EVENTS, {"type": "HEARTBEAT", "metrics": {}}, None),
        (TASKS, {"type": "TASK_SUCCEEDED", "task_id": "t"}, None),
    ],
)
def test_messages_of_both_generations_are_read(channel: str, message: dict, expected: WorkerReport | None) -> None:
    assert parse_report(channel, {"worker_id": "w", **message}) == expected
    assert parse_report(channel, message) is None


def test_a_worker_gets_the_whole_document(tmp_path: Path) -> None:
    document = {"apiVersion": "mloc/v1", "kind": "InferenceTask", "metadata": {"name": "pipe:first"}}
    destination = {"type": "http", "url": "http://x/api/v1/results", "headers": {"Authorization": "Bearer t"}}
    spec = {"data": {"items": ["a"]}, "output": {"destination": destination}}
    message = task_message(job(tmp_path, spec=spec, document=document), "w-a")
    assert list(message) == ["task_id", "task", "task_type", "assigned_worker", "dispatched_at", "parent_task_id"]
    assert message["task"] == {**document, "spec": spec}
    assert (message["task_type"], message["assigned_worker"], message["parent_task_id"]) == ("inference", "w-a", None)


def test_upstream_results_are_there_for_dependants_only(tmp_path: Path) -> None:
    assert "_upstreamResults" not in task_message(job(tmp_path), "w")["task"]["spec"]
    assert task_message(job(tmp_path, results={}), "w")["task"]["spec"]["_upstreamResults"] == {}
    results = {"first": {"result": {"ok": True}}}
    assert task_message(job(tmp_path, results=results), "w")["task"]["spec"]["_upstreamResults"] == results


def test_a_shard_names_its_parent(tmp_path: Path) -> None:
    shard = {"index": 1, "total": 3, "parent_task_id": "p"}
    message = task_message(job(tmp_path, spec={"shard": shard}), "w")
    assert {k: message[k] for k in ("parent_task_id", "shard_index", "shard_total")} == {
        "parent_task_id": "p",
        "shard_index": 1,
        "shard_total": 3,
    }
