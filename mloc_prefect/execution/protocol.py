"""Requests, events and results that cross the process boundary between the stage runner and an executor host.

Standard library only: this module is imported in executor environments that have neither Prefect nor our other
dependencies. On the wire every message is one JSON object per line (`to_wire` / `from_wire`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

EventKind = Literal["progress", "log", "metric", "phase", "waiting", "placed", "shard"]


@dataclass(frozen=True, slots=True)
class ExecutionRequest:
    """One attempt at one task.

    Attributes:
        task_id: Id of the task; also the name of its directory.
        name: `metadata.name` of the effective document, for logs.
        task_type: `spec.taskType`.
        executor: `package.module:Class`.
        spec: The resolved `spec` mapping of the effective document.
        task_dir: Absolute directory of the task's results.
        attempt_dir: Absolute directory of this attempt's files, inside `task_dir/attempts/`.
        run_count: How many times the workflow run was started (used for fencing).
        attempt: Attempt of the stage, from 1.
        upstream: Upstream results by stage name, each with a `result` level.
        settings: The settings that executors may need (mirrors file, seeds, allowed hosts).
    """

    task_id: str
    name: str
    task_type: str
    executor: str
    spec: dict[str, Any]
    task_dir: str
    attempt_dir: str
    run_count: int = 1
    attempt: int = 1
    upstream: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def to_wire(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)

    @classmethod
    def from_wire(cls, data: dict[str, Any]) -> ExecutionRequest:
        """Return the request in `data`; unknown keys of a newer sender are ignored."""
        return cls(**{k: v for k, v in data.items() if k in cls.__dataclass_fields__})


@dataclass(frozen=True, slots=True)
class ExecutionEvent:
    """Something that happened during an attempt.

    Attributes:
        kind: `progress` {done, total, tokens_in?, tokens_out?}, `log` {message, level}, `metric` {name: value},
            `phase` {text, fraction?, patience?} (e.g. "loading weights"); from a dispatcher: `waiting` {reason} (no
            worker has room), `placed` {worker, protocol: "ours" | "original", flow_run: id of the child run or null,
            begun?: an MLOC worker has begun}, `shard` {step: "waiting" | "placed" | "failed" | "done", part:
            {task_id, index, total}, part_attempt, worker, and if present: reason, protocol, flow_run, error,
            final, next_retry_at: UTC in ISO 8601 or None}.
        data: The content, by kind.
        ts: Seconds since the epoch, by the sender's clock.
    """

    kind: EventKind
    data: dict[str, Any]
    ts: float


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """Result of a finished attempt.

    Attributes:
        path: Absolute path of `result.json` in the attempt directory: the result object [protocol 5].
        summary: A few values for displays: model, rows, usage, engine and why it was chosen.
        host_pid: Process that did the work.
        reused_rows: Number of rows taken over from earlier attempts.
        delivered: Whether the worker itself has stored the result in the task directory and sent it to its destination.
        envelope: Whether the file holds the whole envelope [protocol 1.4], not only the result object in it.
    """

    path: str
    summary: dict[str, Any] = field(default_factory=dict)
    host_pid: int | None = None
    reused_rows: int = 0
    delivered: bool = False
    envelope: bool = False


class UserError(Exception):
    """Raised by an executor for a mistake of the user: the task is not retried and no traceback is shown."""


class Cancelled(BaseException):
    """Raised inside an executor after a cancellation; a BaseException so that executors do not swallow it."""
