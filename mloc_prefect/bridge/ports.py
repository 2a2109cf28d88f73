"""What the bridge needs of the outside: records, journal, worker registry, messages, a lease.

Each port is a Protocol. `bridge.memory` and `bridge.memory_tasks` have the twins for one process, `bridge.redis_*` the
real ones; `bridge.stores` opens either set. Every method of a real one raises `StoreError` when Redis cannot be reached
or refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from mloc_prefect.bridge.records import Submission, TaskRecord, WorkerRecord
    from mloc_prefect.bridge.states import Mark, TaskStatus

TASKS, TASK_EVENTS, WORKER_EVENTS = "tasks", "tasks.events", "workers.events"
"""Channels of protocol 3.2."""

Message = tuple[str, "Mapping[str, Any]"]
"""Channel and JSON object."""


class Publisher(Protocol):
    """Sends and receives messages; nobody may be listening, and what is sent meanwhile is lost."""

    async def publish(self, channel: str, message: Mapping[str, Any]) -> int:
        """Send one message; returns how many received it."""
        ...

    def listen(self, *channels: str) -> AbstractAsyncContextManager[AsyncIterator[tuple[str, dict[str, Any]]]]:
        """Hear channels from the moment the context is entered until it is left.

        The iterator gives channel and JSON object; what is no JSON object is left out. It never ends by itself: after a
        lost connection it goes on with a new one, and messages sent in between are missed, so whoever must not miss one
        also looks at the records now and then. Entering raises `StoreError` when there is no connection.
        """
        ...


class TaskStore(Protocol):
    """Submissions and task records, in order of creation."""

    async def submit(self, submission: Submission, records: Sequence[TaskRecord]) -> Submission:
        """Store a submission, its records and its journal entry (`submit`), all or nothing, and durably.

        Returns:
            What was stored: `submission`, or the earlier one when its idempotency key was used with the same digest
            within a day; then nothing was stored.

        Raises:
            ConflictError: The idempotency key was used with another digest.
            ValueError: A task id is taken.
        """
        ...

    async def create(self, records: Sequence[TaskRecord], submission: Submission | None = None) -> tuple[str, ...]:
        """Add records of runs that were started elsewhere, and their submission; what is there already stays as it is.

        Nothing goes to the journal. Records are put in order by `submitted_ts`.

        Returns:
            Task ids that were added.
        """
        ...

    async def get(self, task_id: str) -> TaskRecord | None:
        """Return one record, or None."""
        ...

    async def get_many(self, task_ids: Sequence[str], *, brief: bool = False) -> Mapping[str, TaskRecord]:
        """Return those of the records that are there, in the order asked for; `brief` as in `page`."""
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
    ) -> Sequence[TaskRecord]:
        """Return records in order of creation that fit all that is given.

        Args:
            status: What they must show.
            task_type: Text of `spec.taskType`.
            submission_id: What they were submitted with.
            name: What they must go by (`TaskRecord.goes_by`).
            after: Task id of the last record of the page before; an unknown one gives the empty page.
            limit: Most records; None: all.
            newest_first: The other way round.
            brief: Leave `raw_yaml` and `parsed` empty; much cheaper for whoever does not show them.
        """
        ...

    async def list(self, *, submission_id: str | None = None) -> Sequence[TaskRecord]:
        """Return all records, or those of one submission, in order of creation."""
        ...

    async def submission(self, submission_id: str) -> Submission | None:
        """Return one submission, or None."""
        ...

    async def keyed(self, key: str) -> Submission | None:
        """Return the submission for which an idempotency key was used within a day, or None."""
        ...

    async def dispatched(self, submission_id: str, flow_run: str) -> None:
        """Note the Prefect flow run of a submission; nothing happens when it is unknown."""
        ...

    async def attend(self, submission_id: str, until: float) -> None:
        """Note until when the process that runs a submission counts as alive; nothing happens when it is unknown."""
        ...

    async def counts(self) -> Mapping[TaskStatus, int]:
        """Return how many records show each status, zeros included."""
        ...

    async def tally(self) -> Mapping[str, float]:
        """Return the sums that transitions (their `add`) and `add` added to."""
        ...

    async def add(self, sums: Mapping[str, float]) -> None:
        """Add to the tally what belongs to no record."""
        ...

    async def request_cancel(self, submission_id: str, task_id: str | None = None) -> Entry:
        """Ask for the end of a submission, or of one task of it: a journal entry (`cancel`), durably.

        Without `task_id` the submission is also marked as cancelled. The records are the caller's to move.
        """
        ...

    async def transition(
        self,
        task_id: str,
        mark: Mark,
        changes: Mapping[str, Any] | None = None,
        messages: Sequence[Message] = (),
        *,
        add: Mapping[str, float] | None = None,
        fence: Fence | None = None,
    ) -> TaskRecord | None:
        """Move a record to `mark`, change other fields of it and send messages, as one step that no other splits.

        Args:
            task_id: Which record.
            mark: Where to.
            changes: Values of other fields of `TaskRecord`; not `task_id`, `mark`, `raw_yaml` or `submission_id`.
            messages: What to publish when the step is taken.
            add: What to add to the tally when the step is taken.
            fence: A lease that must not have gone to another holder.

        Returns:
            The new record without its long fields (`brief`); None when there is no such record or `states.allowed`
            forbids the step, and then nothing was changed or sent.

        Raises:
            FencedError: The lease has gone to another holder; nothing was changed or sent.
        """
        ...

    async def note(
        self, task_id: str, mark: Mark, changes: Mapping[str, Any], messages: Sequence[Message] = ()
    ) -> TaskRecord | None:
        """Change fields of a record that stands exactly at `mark`, e.g. the reason why it waits.

        Returns:
            The new record without its long fields; None when it is not there or stands elsewhere, and then nothing was
            changed or sent.
        """
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the journal.

    Attributes:
        id: Its place in the journal; entries are in order.
        kind: `submit`: make the Prefect run of the submission. `cancel`: end it, or one task of it.
        submission_id: Which submission.
        task_id: Task to be cancelled; None: all of the submission.
    """

    id: str
    kind: Literal["submit", "cancel"]
    submission_id: str
    task_id: str | None = None


class Journal(Protocol):
    """What was accepted and is not yet done; every entry goes to one consumer, and stays until that one has it done."""

    async def read(self, consumer: str, *, block_ms: int = 0, count: int = 16) -> Sequence[Entry]:
        """Return the next entries, at most `count`; waits up to `block_ms` for the first.

        The first reads of a `consumer` in a process give what it had taken before and not acknowledged.
        """
        ...

    async def ack(self, entry: Entry) -> None:
        """Take a finished entry out of the journal."""
        ...

    async def reclaim(self, consumer: str, *, min_idle_ms: int, count: int = 16) -> Sequence[Entry]:
        """Take over entries that any consumer took at least `min_idle_ms` ago and has not acknowledged."""
        ...

    async def depth(self) -> int:
        """Return how many entries are not acknowledged."""
        ...


@dataclass(frozen=True, slots=True)
class Fence:
    """A lease as it was given: name and number; a later holder has a higher number."""

    name: str
    number: int


class Leases(Protocol):
    """Leases by name, each held by one at a time (one bridge is active, say)."""

    async def acquire(self, name: str, holder: str, *, ttl: float) -> Fence | None:
        """Take the lease for `ttl` seconds, or prolong one's own; None when another holds it."""
        ...

    async def release(self, name: str, holder: str) -> bool:
        """Give it back; returns False when `holder` did not hold it."""
        ...


class WorkerRegistry(Protocol):
    """Workers and their heartbeats. [protocol 3.1] Messages are sent in the same step, when it is taken."""

    async def register(self, record: WorkerRecord, *, ttl: float, messages: Sequence[Message] = ()) -> None:
        """Add or replace a worker that lives until `ttl` seconds without a heartbeat have passed."""
        ...

    async def heartbeat(
        self,
        worker_id: str,
        *,
        ttl: float,
        at_work: Mapping[str, Any] | None = None,
        messages: Sequence[Message] = (),
    ) -> bool:
        """Renew a worker, and what it holds and runs where it says so; returns False when it is not registered.

        `at_work["models"]` are its cached models, too.
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
        """Set `status`, and `extra_<key>` fields; returns False when it is not registered (no ghost record is made)."""
        ...

    async def get(self, worker_id: str) -> WorkerRecord | None:
        """Return one worker, `stale` as of now, or None."""
        ...

    async def list(self) -> Sequence[WorkerRecord]:
        """Return all workers, `stale` as of now, in order of their ids."""
        ...

    async def set_elastic(self, worker_id: str, *, enabled: bool) -> bool:
        """Say whether a worker gets new work (set `workers:elastic_disabled`); returns False when it is not there."""
        ...

    async def remove(self, worker_id: str, *, only_stale: bool = False, messages: Sequence[Message] = ()) -> bool:
        """Forget a worker; returns whether it was there (and, where asked for, stale)."""
        ...
