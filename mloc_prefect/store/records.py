"""Records as clients see them: what `GET /api/v1/tasks` and `GET /workers` show. [protocol 1.2, 2.1]."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from mloc_prefect.store.states import Phase, StatusMark, TaskStatus

ORIGINAL_KEYS = (
    "task_id",
    "raw_yaml",
    "parsed",
    "status",
    "assigned_worker",
    "topic",
    "submitted_at",
    "error",
    "retries",
    "max_retries",
    "parent_task_id",
    "shard_index",
    "shard_total",
    "next_retry_at",
    "last_failed_worker",
    "graph_node_name",
)
"""Keys of a record in the original generation, in its order; those of the later one follow in our answers."""

INTERNAL = ("mark", "name", "protocol", "flow_run", "masked", "shown_yaml", "shown_parsed", "outline")
"""Fields of a task that are not shown."""

INTERNAL_TO_WORKERS = ("protocol", "running", "last_task")
"""Fields of a worker that are not shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """One task, as clients of both generations know it.

    Attributes:
        task_id: Its id.
        raw_yaml: The whole submitted text; the same for all tasks of a submission.
        parsed: The effective document.
        mark: Attempt and phase; `status`, `attempts` and `retries` follow from it.
        assigned_worker: Worker id, `MULTI`, or None.
        topic: `tasks` once dispatched, else None.
        submitted_at: UTC, ISO 8601.
        error: Why it waits or failed, or None.
        max_attempts: Total number of attempts; `max_retries` is one less.
        parent_task_id: The sharded task of which it is a shard, or None.
        shard_index: Index of the shard, from 0, or None.
        shard_total: Number of shards, or None.
        next_retry_at: UTC, ISO 8601, while it backs off, else None.
        last_failed_worker: Where it failed last, or None.
        graph_node_name: Stage or node name; None for a single task and for shards.
        submission_id: Its submission.
        task_type: Text of `spec.taskType`.
        category: `inference`, `training` or `other`.
        submitted_ts: Submission, seconds since the epoch.
        last_queue_ts: When it was queued last, seconds since the epoch, or None.
        dispatched_ts: When it was sent to a worker, or None.
        started_ts: When the worker began, or None.
        finished_ts: When it ended, or None.
        load: `spec.resources.estimatedLoad`.
        depends_on: Task ids that it depends on, in order.
        name: Ours, not shown: `metadata.name` of the task.
        protocol: Ours, not shown: protocol of the worker, `ours` or `original`; None without a worker.
        flow_run: Ours, not shown: Prefect flow run of the stage, or None.
        masked: Ours: the next three fields are known (`record_views`); False for records of earlier versions.
        shown_yaml: Ours: `raw_yaml` without secrets, None if it has none.
        shown_parsed: Ours: `parsed` without secrets, None if it has none.
        outline: Ours: what lists show of a long `parsed`; None if it is short.
    """

    task_id: str
    raw_yaml: str
    parsed: dict[str, Any]
    mark: StatusMark
    submitted_at: str
    assigned_worker: str | None = None
    topic: str | None = None
    error: str | None = None
    max_attempts: int = 4
    parent_task_id: str | None = None
    shard_index: int | None = None
    shard_total: int | None = None
    next_retry_at: str | None = None
    last_failed_worker: str | None = None
    graph_node_name: str | None = None
    submission_id: str | None = None
    task_type: str = ""
    category: str = "other"
    submitted_ts: float = 0.0
    last_queue_ts: float | None = None
    dispatched_ts: float | None = None
    started_ts: float | None = None
    finished_ts: float | None = None
    load: int = 0
    depends_on: tuple[str, ...] = ()
    name: str = ""
    protocol: str | None = None
    flow_run: str | None = None
    masked: bool = False
    shown_yaml: str | None = None
    shown_parsed: dict[str, Any] | None = None
    outline: dict[str, Any] | None = None

    @property
    def status(self) -> TaskStatus:
        """The status in answers."""
        return self.mark.phase.status

    @property
    def retries(self) -> int:
        """Failures so far, as the original generation counts them: including the last one."""
        return self.attempts if self.mark.phase is Phase.FAILED else self.mark.attempt - 1

    @property
    def attempts(self) -> int:
        """Attempts begun so far, as the later generation counts them."""
        begun = self.mark.phase >= Phase.DISPATCHED and not self._never_ran
        return self.mark.attempt if begun else self.mark.attempt - 1

    @property
    def _never_ran(self) -> bool:
        """Whether it ended before its first attempt: a dependency failed, or it was cancelled while waiting."""
        return self.mark.phase.terminal and self.mark.attempt == 1 and self.dispatched_ts is None

    def goes_by(self, name: str) -> bool:
        """Return whether `name` is its name, the submission's (the part before the first colon) or the stage's."""
        return name in {self.name, self.name.partition(":")[0], self.graph_node_name}

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object: the keys of the original generation in their order, then those of the later one."""
        data = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in INTERNAL}
        data |= {
            "status": str(self.status),
            "retries": self.retries,
            "max_retries": self.max_attempts - 1,
            "attempts": self.attempts,
            "depends_on": list(self.depends_on),
        }
        original = {key: data.pop(key) for key in ORIGINAL_KEYS}
        return original | data


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One request of a client: everything that is needed to run it, shared by all of its tasks.

    Attributes:
        submission_id: Its id, a UUID; also the idempotency key of its Prefect run.
        raw_yaml: The whole text, unchanged.
        task_ids: Its tasks, in the order of the answer.
        submitted_at: UTC, ISO 8601.
        name: `metadata.name`.
        file: Name of the text in messages.
        parameters: Values of `${param.NAME}`.
        strict: Whether warnings of executors fail its stages.
        idempotency_key: What the client sent as `Idempotency-Key`, or None.
        digest: Hash of the request, compared when the key is used again.
        flow_run: Prefect flow run of the submission, once it exists in the bridge's Prefect, or None.
        cancelled: Whether its cancellation was requested.
        attended_until: Until when the process that runs it and keeps its records (`mloc run`) counts as alive, seconds
            since the epoch; None when the bridge does both.
        masked: Whether `shown_yaml` is known; False for submissions of earlier versions.
        shown_yaml: `raw_yaml` without secrets, None if it has none.
    """

    submission_id: str
    raw_yaml: str
    task_ids: tuple[str, ...] = ()
    submitted_at: str = ""
    name: str = ""
    file: str = "<submitted>"
    parameters: dict[str, str] = field(default_factory=dict)
    strict: bool = False
    idempotency_key: str | None = None
    digest: str | None = None
    flow_run: str | None = None
    cancelled: bool = False
    attended_until: float | None = None
    masked: bool = False
    shown_yaml: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """One worker of the registry. [protocol 1.2, 3.1].

    Attributes:
        worker_id: Its id.
        status: `STARTING`, `IDLE`, `RUNNING`, or `UNKNOWN` without one.
        started_at: UTC, ISO 8601.
        pid: Its process.
        env: Its report about its environment.
        hardware: `cpu`, `memory`, `gpu`, `network` in the form of protocol 3.2.
        tags: Free words.
        last_seen: Last heartbeat, UTC, ISO 8601.
        stale: No heartbeat within its time to live.
        cost_per_hour: Later generation; None when unknown.
        cached_models: Later generation: models that need no download.
        cached_datasets: Later generation: data sets that need no download.
        elastic_disabled: Later generation: it gets no new work, see `WorkerRegistry.set_elastic`.
        at_work: Ours: what it holds and runs now (`WorkerCard.at_work`); None, and not shown, when not reported.
        protocol: Ours, not shown: how it gets its work, `ours` (hash field `mloc_protocol`) or, where that field is
            missing, `original`: by messages on `tasks`.
        running: Not shown: the task that it began last (`extra_task_id`), or None.
        last_task: Not shown: the task that it ended last (`extra_last_task`), or None.
    """

    worker_id: str
    status: str = "UNKNOWN"
    started_at: str | None = None
    pid: int | None = None
    env: dict[str, Any] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    last_seen: str | None = None
    stale: bool = False
    cost_per_hour: float | None = None
    cached_models: tuple[str, ...] = ()
    cached_datasets: tuple[str, ...] = ()
    elastic_disabled: bool = False
    at_work: dict[str, Any] | None = None
    protocol: str = "original"
    running: str | None = None
    last_task: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object: the keys of the original generation in their order, then those of the later one."""
        hidden = (*INTERNAL_TO_WORKERS, *(["at_work"] if self.at_work is None else []))
        shown = [entry.name for entry in fields(self) if entry.name not in hidden]
        data = {name: getattr(self, name) for name in shown}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in data.items()}
