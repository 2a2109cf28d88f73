"""The messages between a dispatcher and MLOC workers of both generations. [protocol 3.2]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from mloc_prefect.store.interfaces import TASK_EVENTS, WORKER_EVENTS

if TYPE_CHECKING:
    from mloc_prefect.flow.dispatcher import StageJob
    from mloc_prefect.store.interfaces import Message

_OUTCOMES: Mapping[str, Literal["began", "succeeded", "failed"]] = {
    "TASK_STARTED": "began",
    "TASK_SUCCEEDED": "succeeded",
    "TASK_FAILED": "failed",
}


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """A message of a worker, parsed.

    Attributes:
        what: `began`, `succeeded`, `failed`: about a task. `idle`, `registered`, `stopped`: about the worker.
        worker_id: The worker.
        task_id: The task; for `idle` the one that it ended last, if named.
        error: Why the task failed, or None.
        dispatched_at: The time in the task message, if the worker repeats it (later generation).
    """

    what: Literal["began", "succeeded", "failed", "idle", "registered", "stopped"]
    worker_id: str
    task_id: str | None = None
    error: str | None = None
    dispatched_at: str | None = None


def parse_report(channel: str, message: Mapping[str, Any]) -> WorkerReport | None:
    """Parse `message`; None when a dispatcher ignores it (heartbeats, unknown types)."""
    worker_id = _text(message.get("worker_id"))
    if worker_id is None:
        return None
    kind = str(message.get("type") or "").upper()
    details = _details(message)
    if channel == TASK_EVENTS:
        return _of_task(kind, worker_id, message, details)
    return _of_worker(kind, worker_id, message, details) if channel == WORKER_EVENTS else None


def task_message(job: StageJob, worker_id: str) -> dict[str, Any]:
    """Return the message that sends the attempt of `job` to a worker.

    The worker gets the effective document with its references resolved; `_upstreamResults` is there when the task
    depends on others, and `shard_index` and `shard_total` when it is a shard.
    """
    request = job.request
    spec = dict(request.spec)
    if job.results is not None:
        spec["_upstreamResults"] = dict(job.results)
    shard = spec.get("shard")
    part = shard if isinstance(shard, Mapping) and shard.get("parent_task_id") else {}
    message = {
        "task_id": request.task_id,
        "task": {**job.document, "spec": spec},
        "task_type": request.task_type,
        "assigned_worker": worker_id,
        "dispatched_at": now(),
        "parent_task_id": part.get("parent_task_id"),
    }
    if part:
        message |= {"shard_index": part.get("index"), "shard_total": part.get("total")}
    return message


def status_message(worker_id: str, status: str) -> Message:
    """Return the message with which a dispatcher sets the status of a worker: without `extra`."""
    return WORKER_EVENTS, {"type": "STATUS", "worker_id": worker_id, "status": status, "ts": now()}


def now() -> str:
    """Return the time as the protocol writes it: UTC, ISO 8601."""
    return datetime.now(UTC).isoformat()


def _of_task(kind: str, worker_id: str, message: Mapping[str, Any], details: Mapping[str, Any]) -> WorkerReport | None:
    what, task_id = _OUTCOMES.get(kind), _text(message.get("task_id"))
    if what is None or task_id is None:
        return None
    error = str(message.get("error") or "worker failed") if what == "failed" else None
    return WorkerReport(what, worker_id, task_id, error, _text(details.get("dispatched_at")))


def _of_worker(
    kind: str, worker_id: str, message: Mapping[str, Any], details: Mapping[str, Any]
) -> WorkerReport | None:
    if kind == "UNREGISTER":
        return WorkerReport("stopped", worker_id)
    if kind == "REGISTER":
        return WorkerReport("registered", worker_id)
    if kind != "STATUS":
        return None
    task_id = _text(details.get("task_id"))
    if message.get("status") == "RUNNING" and task_id is not None:
        return WorkerReport("began", worker_id, task_id)
    return WorkerReport("idle", worker_id, _text(details.get("last_task"))) if message.get("status") == "IDLE" else None


def _details(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `extra`, which the later generation calls `payload`."""
    found = message.get("extra") or message.get("payload")
    return found if isinstance(found, Mapping) else {}


def _text(value: Any) -> str | None:
    text = str(value).strip() if value is not None else ""
    return text or None
