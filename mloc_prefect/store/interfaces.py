"""The protocols of the store: records, journal, worker registry, messages, leases.

`store.redis` implements each of them, `store.memory` has a twin of each, and `store.backends` opens either set. Every
method of a Redis store raises `StoreError` when Redis cannot be reached or refuses the command.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from mloc_prefect.store.records import Submission, TaskRecord, WorkerRecord
    from mloc_prefect.store.states import StatusMark, TaskStatus

TASKS, TASK_EVENTS, WORKER_EVENTS = "tasks", "tasks.events", "workers.events"
"""Channels of protocol 3.2."""

IDEMPOTENCY_SECONDS = 24 * 3600
"""How long an idempotency key is remembered."""

Message = tuple[str, "Mapping[str, Any]"]
"""Channel and JSON object."""


class Publisher(Protocol):
    """Sends and receives messages; a message without a listener is lost."""

    async def publish(self, channel: str, message: Mapping[str, Any]) -> int:
        """Send one message; returns how many received it."""
        ...

    def listen(self, *channels: str) -> AbstractAsyncContextManager[AsyncIterator[tuple[str, dict[str, Any]]]]:
        """Listen to channels from the moment the context is entered until it is left.

        The iterator yields channel and JSON object, and skips messages that are no JSON object. It never ends by
        itself: after a lost connection it continues with a new one and misses the messages in between, so a caller
        that must not miss one also polls the records. Entering raises `StoreError` when there is no connection.
        """
        ...


class TaskStore(Protocol):
    """Submissions and task records, in order of creation."""

    async def submit(self, submission: Submission, records: Sequence[TaskRecord]) -> Submission:
        """Store a submission, its records and its journal entry (`submit`), atomically and durably.

        Returns:
            The stored submission: `submission`, or the earlier one when its idempotency key was used with the same
            digest within a day; then nothing is stored.

        Raises:
            ConflictError: The idempotency key was used with another digest.
            ValueError: A task id is already used.
        """
        ...

    async def create(self, records: Sequence[TaskRecord], submission: Submission | None = None) -> tuple[str, ...]:
        """Add records of runs that were started elsewhere, and their submission; existing ones stay as they are.

        Nothing is added to the journal. Records are ordered by `submitted_ts`.

        Returns:
            Task ids that were added.
        """
        ...

    async def get(self, task_id: str) -> TaskRecord | None:
        """Return one record, or None."""
        ...

    async def get_many(self, task_ids: Sequence[str], *, brief: bool = False) -> Mapping[str, TaskRecord]:
        """Return the records that exist, in the order of `task_ids`; `brief` as in `page`."""
        ...

    async def page(
        self,
        *,
        status: TaskStatus | None = None,
        task_type: str | None = None,
        submission_id: str | None = None,
        name: str | None = None,
        after: str | None = None,
        limit: int | None = None,
        newest_first: bool = False,
        brief: bool = False,
        outlines: bool = False,
    ) -> Sequence[TaskRecord]:
        """Return the records that match all given conditions, in order of creation.

        Args:
            status: Their status.
            task_type: Text of `spec.taskType`.
            submission_id: Their submission.
            name: A name of theirs (`TaskRecord.goes_by`).
            after: Task id of the last record of the previous page; an unknown one gives an empty page.
            limit: Maximum number of records; None: all.
            newest_first: Reverse the order.
            brief: Leave `raw_yaml` and `parsed` empty, which is much cheaper.
            outlines: Leave them empty for records that have an `outline`, for lists.
        """
        ...

    async def list(self, *, submission_id: str | None = None) -> Sequence[TaskRecord]:
        """Return all records, or those of one submission, in order of creation."""
        ...

    async def submission(self, submission_id: str) -> Submission | None:
        """Return one submission, or None."""
        ...

    async def keyed(self, key: str) -> Submission | None:
        """Return the submission that used an idempotency key within a day, or None."""
        ...

    async def dispatched(self, submission_id: str, flow_run: str) -> None:
        """Store the Prefect flow run of a submission; an unknown submission is ignored."""
        ...

    async def attend(self, submission_id: str, until: float) -> None:
        """Store until when the process that runs a submission counts as alive; an unknown submission is ignored."""
        ...

    async def counts(self) -> Mapping[TaskStatus, int]:
        """Return the number of records in each status, including zeros."""
        ...

    async def tally(self) -> Mapping[str, float]:
        """Return the counters that `transition` (argument `add`) and `add` increased."""
        ...

    async def add(self, sums: Mapping[str, float]) -> None:
        """Increase counters that belong to no record."""
        ...

    async def request_cancel(self, submission_id: str, task_id: str | None = None) -> JournalEntry:
        """Request the cancellation of a submission, or of one task of it: a journal entry (`cancel`), durably.

        Without `task_id` the submission is also marked as cancelled. The records are not changed.
        """
        ...

    async def transition(
        self,
        task_id: str,
        mark: StatusMark,
        changes: Mapping[str, Any] | None = None,
        messages: Sequence[Message] = (),
        *,
        add: Mapping[str, float] | None = None,
        fence: Fence | None = None,
    ) -> TaskRecord | None:
        """Move a record to `mark`, change other fields of it and send messages, atomically.

        Args:
            task_id: The record.
            mark: The new mark.
            changes: New values of other fields of `TaskRecord`; not `task_id`, `mark`, `raw_yaml` or `submission_id`.
            messages: Messages to publish with the step.
            add: Counters to increase with the step.
            fence: A lease that must still belong to its holder.

        Returns:
            The new record without its long fields (`brief`); None when there is no such record or `states.allowed`
            forbids the step; then nothing is changed or sent.

        Raises:
            FencedError: Another holder has taken the lease; nothing is changed or sent.
        """
        ...

    async def note(
        self, task_id: str, mark: StatusMark, changes: Mapping[str, Any], messages: Sequence[Message] = ()
    ) -> TaskRecord | None:
        """Change fields of a record that is exactly at `mark`, e.g. the reason why it waits.

        Returns:
            The new record without its long fields; None when there is no such record or it is at another mark; then
            nothing is changed or sent.
        """
        ...


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One entry of the journal.

    Attributes:
        id: Its position in the journal; entries are in order.
        kind: `submit`: make the Prefect run of the submission. `cancel`: cancel it, or one task of it.
        submission_id: The submission.
        task_id: Task to cancel; None: the whole submission.
    """

    id: str
    kind: Literal["submit", "cancel"]
    submission_id: str
    task_id: str | None = None


class Journal(Protocol):
    """Accepted requests that are not yet handled; each goes to one consumer and stays until it is acknowledged."""

    async def read(self, consumer: str, *, block_ms: int = 0, count: int = 16) -> Sequence[JournalEntry]:
        """Return the next entries, at most `count`; wait up to `block_ms` for the first.

        The first reads of a `consumer` in a process return the entries that it had read before and not acknowledged.
        """
        ...

    async def ack(self, entry: JournalEntry) -> None:
        """Remove a handled entry from the journal."""
        ...

    async def reclaim(self, consumer: str, *, min_idle_ms: int, count: int = 16) -> Sequence[JournalEntry]:
        """Take over entries that any consumer read at least `min_idle_ms` ago and has not acknowledged."""
        ...

    async def depth(self) -> int:
        """Return the number of unacknowledged entries."""
        ...


@dataclass(frozen=True, slots=True)
class Fence:
    """A granted lease: name and number; a later holder has a higher number."""

    name: str
    number: int


class Leases(Protocol):
    """Leases by name, each with one holder at a time (e.g. the active bridge)."""

    async def acquire(self, name: str, holder: str, *, ttl: float) -> Fence | None:
        """Acquire or renew the lease for `ttl` seconds; None when another holder has it."""
        ...

    async def release(self, name: str, holder: str) -> bool:
        """Release the lease; False when `holder` did not hold it."""
        ...


class WorkerRegistry(Protocol):
    """Workers and their heartbeats. [protocol 3.1] Messages are sent in the same atomic step."""

    async def register(self, record: WorkerRecord, *, ttl: float, messages: Sequence[Message] = ()) -> None:
        """Add or replace a worker, which becomes stale after `ttl` seconds without a heartbeat."""
        ...

    async def heartbeat(
        self,
        worker_id: str,
        *,
        ttl: float,
        at_work: Mapping[str, Any] | None = None,
        messages: Sequence[Message] = (),
    ) -> bool:
        """Renew a worker, and what it holds and runs if given; False when it is not registered.

        `at_work["models"]` are also its cached models.
        """
        ...

    async def set_status(
        self,
        worker_id: str,
        status: str,
        *,
        extra: Mapping[str, str] | None = None,
        messages: Sequence[Message] = (),
    ) -> bool:
        """Set `status` and the fields `extra_<key>`; False when the worker is not registered (no record is made)."""
        ...

    async def get(self, worker_id: str) -> WorkerRecord | None:
        """Return one worker, `stale` as of now, or None."""
        ...

    async def list(self) -> Sequence[WorkerRecord]:
        """Return all workers, `stale` as of now, in order of their ids."""
        ...

    async def set_elastic(self, worker_id: str, *, enabled: bool) -> bool:
        """Set whether a worker gets new work (set `workers:elastic_disabled`); False when it is not registered."""
        ...

    async def remove(self, worker_id: str, *, only_stale: bool = False, messages: Sequence[Message] = ()) -> bool:
        """Remove a worker; return whether it was registered (and stale, with `only_stale`)."""
        ...
