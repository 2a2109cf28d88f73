"""What the bridge needs of the outside: a task store, a worker registry, a publisher. Twins: `bridge.memory`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mloc_prefect.bridge.records import TaskRecord, WorkerRecord
    from mloc_prefect.bridge.states import Mark

TASKS, TASK_EVENTS, WORKER_EVENTS = "tasks", "tasks.events", "workers.events"
"""Channels of protocol 3.2."""

Message = tuple[str, "Mapping[str, Any]"]
"""Channel and JSON object."""


class Publisher(Protocol):
    """Sends messages; nobody may be listening."""

    async def publish(self, channel: str, message: Mapping[str, Any]) -> int:
        """Send one message; returns how many received it."""
        ...


class TaskStore(Protocol):
    """Task records, in order of creation."""

    async def create(self, records: Sequence[TaskRecord]) -> None:
        """Add the records of one submission, all or none.

        Raises:
            ValueError: A task id is taken.
        """
        ...

    async def get(self, task_id: str) -> TaskRecord | None:
        """Return one record, or None."""
        ...

    async def list(self, *, submission_id: str | None = None) -> Sequence[TaskRecord]:
        """Return all records, or those of one submission, in order of creation."""
        ...

    async def transition(
        self, task_id: str, mark: Mark, changes: Mapping[str, Any] | None = None, messages: Sequence[Message] = ()
    ) -> TaskRecord | None:
        """Move a record to `mark`, change other fields of it and send messages, as one step that no other splits.

        Returns:
            The new record; None when there is no such record or `states.allowed` forbids the step, and then nothing
            was changed or sent.
        """
        ...


class WorkerRegistry(Protocol):
    """Workers and their heartbeats."""

    async def register(self, record: WorkerRecord, *, ttl: float) -> None:
        """Add or replace a worker that lives until `ttl` seconds without a heartbeat have passed."""
        ...

    async def heartbeat(self, worker_id: str, *, ttl: float) -> bool:
        """Renew a worker; returns False when it is not registered."""
        ...

    async def set_status(self, worker_id: str, status: str) -> bool:
        """Set `status`; returns False when the worker is not registered (no ghost record is made)."""
        ...

    async def get(self, worker_id: str) -> WorkerRecord | None:
        """Return one worker, `stale` as of now, or None."""
        ...

    async def list(self) -> Sequence[WorkerRecord]:
        """Return all workers, `stale` as of now, in order of their ids."""
        ...

    async def remove(self, worker_id: str) -> bool:
        """Forget a worker; returns whether it was there."""
        ...
