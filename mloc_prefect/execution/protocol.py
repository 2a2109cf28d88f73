"""What crosses the process boundary between the stage runner and an executor host.

Standard library only: this module is imported in executor environments that have neither Prefect nor our other
dependencies. On the wire every message is one JSON object a line (`to_wire` / `from_wire`).
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
        run_count: How often the root run was started (fencing).
        attempt: Attempt of the stage, from 1.
        upstream: Upstream results by stage name, each with a `result` level.
        settings: What the executor may need of the settings (mirrors file, seeds, allowed hosts).
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
        """Return the request in `data`; keys of a newer sender are ignored."""
        return cls(**{k: v for k, v in data.items() if k in cls.__dataclass_fields__})


@dataclass(frozen=True, slots=True)
class ExecutionEvent:
    """Something that happened while an attempt ran.

    Attributes:
        kind: `progress` {done, total, tokens_in?, tokens_out?}, `log` {message, level}, `metric` {name: value},
            `phase` {text, fraction?, patience?} (e.g. "loading weights"); from a dispatcher: `waiting` {reason} (no
            place has room), `placed` {worker, protocol: "ours" | "original", flow_run: id of the child run or null,
            begun?: an original one has begun}, `shard` {step: "waiting" | "placed" | "failed" | "done", part:
            {task_id, index, total}, part_attempt, worker, and what these have: reason, protocol, flow_run, error,
            final, next_retry_at: UTC in ISO 8601 or None}.
        data: The facts.
        ts: Seconds since the epoch, by the sender's clock.
    """

    kind: EventKind
    data: dict[str, Any]
    ts: float


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """A finished attempt.

    Attributes:
        path: Absolute path of `result.json` in the attempt directory: the result object of protocol section 5.
        summary: Small facts for displays: model, rows, usage, engine and why it was chosen.
        host_pid: Process that did the work.
        reused_rows: Rows taken over from earlier attempts.
        delivered: The worker has itself put the result to the task's place and to its destination.
        envelope: The file holds the whole envelope [protocol 1.4], not only the result object in it.
    """

    path: str
    summary: dict[str, Any] = field(default_factory=dict)
    host_pid: int | None = None
    reused_rows: int = 0
    delivered: bool = False
    envelope: bool = False


@dataclass(frozen=True, slots=True)
class ExecutionFailure:
    """A failed attempt.

    Attributes:
        message: One sentence for the user.
        kind: `user` (bad input; never retried), `error` (the executor raised), `killed` (process ended by a signal),
            `exited` (process ended by itself), `oom` (out of memory), `timeout`, `stalled`, `cancelled`,
            `missing` (a library or model is not there; never retried).
        error_type: Class name of the exception, or None.
        traceback: Text of the traceback, or None.
        signal: Name of the signal that ended the process, or None.
        exit_code: Exit status of the process, or None.
        log_tail: Last lines of the host's output.
        hint: What to do about it, or None.
    """

    message: str
    kind: Literal["user", "error", "killed", "exited", "oom", "timeout", "stalled", "cancelled", "missing"] = "error"
    error_type: str | None = None
    traceback: str | None = None
    signal: str | None = None
    exit_code: int | None = None
    log_tail: str = ""
    hint: str | None = None

    @property
    def retryable(self) -> bool:
        """Whether another attempt may go better."""
        return self.kind not in {"user", "missing", "cancelled"}

    def to_wire(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)

    @classmethod
    def from_wire(cls, data: dict[str, Any]) -> ExecutionFailure:
        """Return the failure in `data`."""
        return cls(**{k: v for k, v in data.items() if k in cls.__dataclass_fields__})


class UserError(Exception):
    """Raised by an executor for a mistake of the user: no retry, no traceback shown."""


class Cancelled(BaseException):
    """Raised inside an executor when its client has gone; a BaseException so that executors do not swallow it."""
