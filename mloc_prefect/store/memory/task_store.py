"""Task records in dictionaries: the twin of `store.redis.task_store`."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mloc_prefect.errors import ConflictError, FencedError
from mloc_prefect.store.interfaces import IDEMPOTENCY_SECONDS, JournalEntry
from mloc_prefect.store.memory.journal import MemoryJournal
from mloc_prefect.store.memory.publisher import send_all
from mloc_prefect.store.states import TaskStatus, allowed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mloc_prefect.store.interfaces import Fence, Message, Publisher
    from mloc_prefect.store.memory.service_leases import MemoryLeases
    from mloc_prefect.store.records import Submission, TaskRecord
    from mloc_prefect.store.states import StatusMark


class MemoryTaskStore:
    """Submissions and records in dictionaries.

    Args:
        publisher: Publisher of the messages of each step.
        journal: Journal of submissions and cancellations; None: a new one.
        leases: Leases that a `fence` is checked against; None: no fence is refused.
        clock: Wall clock, in seconds since the epoch.
    """

    def __init__(
        self,
        publisher: Publisher,
        journal: MemoryJournal | None = None,
        leases: MemoryLeases | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._publisher = publisher
        self._journal = journal or MemoryJournal()
        self._leases = leases
        self._clock = clock
        self._records: dict[str, TaskRecord] = {}
        self._order: dict[str, float] = {}
        self._submissions: dict[str, Submission] = {}
        self._keys: dict[str, tuple[str, float]] = {}
        self._tally: dict[str, float] = {}

    async def submit(self, submission: Submission, records: Sequence[TaskRecord]) -> Submission:
        """Store a submission, its records and its journal entry, atomically."""
        key = submission.idempotency_key
        if key is not None and (earlier := self._earlier(key)) is not None:
            if earlier.digest != submission.digest:
                raise ConflictError(
                    f"the idempotency key {key!r} was used for another submission", hint="use a new key for new content"
                )
            return earlier
        _refuse_taken([record.task_id for record in records], self._records)
        first = self._next_position()
        self._add(records, [first + index for index in range(len(records))])
        self._submissions[submission.submission_id] = submission
        if key is not None:
            self._keys[key] = (submission.submission_id, self._clock() + IDEMPOTENCY_SECONDS)
        self._journal.add(JournalEntry("", "submit", submission.submission_id))
        return submission

    async def create(self, records: Sequence[TaskRecord], submission: Submission | None = None) -> tuple[str, ...]:
        """Add records of runs that were started elsewhere; existing ones stay as they are."""
        if submission is not None:
            self._submissions.setdefault(submission.submission_id, submission)
        new = {record.task_id: record for record in records if record.task_id not in self._records}
        listed = list(submission.task_ids) if submission else [record.task_id for record in records]
        first = self._next_position()
        positions = [
            (record.submitted_ts * 1e6 if record.submitted_ts else first)
            + (listed.index(task_id) if task_id in listed else 0)
            for task_id, record in new.items()
        ]
        self._add(list(new.values()), positions)
        return tuple(new)

    async def get(self, task_id: str) -> TaskRecord | None:
        """Return one record, or None."""
        return self._records.get(task_id)

    async def get_many(self, task_ids: Sequence[str], *, brief: bool = False) -> Mapping[str, TaskRecord]:
        """Return the records that exist, in the order of `task_ids`."""
        found = {task_id: self._records[task_id] for task_id in task_ids if task_id in self._records}
        return {task_id: _brief(record) for task_id, record in found.items()} if brief else found

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
        """Return the records that match all given conditions, in order of creation."""
        ids = sorted(self._records, key=lambda task_id: (self._order[task_id], task_id), reverse=newest_first)
        if after is not None:
            ids = ids[ids.index(after) + 1 :] if after in self._records else []
        found = [
            record
            for record in map(self._records.__getitem__, ids)
            if status in {None, record.status}
            and task_type in {None, record.task_type}
            and submission_id in {None, record.submission_id}
            and (name is None or record.goes_by(name))
        ]
        if brief:
            return [_brief(record) for record in found[:limit]]
        return [_brief(record) if outlines and record.outline else record for record in found[:limit]]

    async def list(self, *, submission_id: str | None = None) -> Sequence[TaskRecord]:
        """Return all records, or those of one submission, in order of creation."""
        return await self.page(submission_id=submission_id)

    async def submission(self, submission_id: str) -> Submission | None:
        """Return one submission, or None."""
        return self._submissions.get(submission_id)

    async def keyed(self, key: str) -> Submission | None:
        """Return the submission that used an idempotency key within a day, or None."""
        return self._earlier(key)

    async def dispatched(self, submission_id: str, flow_run: str) -> None:
        """Store the Prefect flow run of a submission."""
        self._change(submission_id, flow_run=flow_run)

    async def attend(self, submission_id: str, until: float) -> None:
        """Store until when the process that runs a submission counts as alive."""
        self._change(submission_id, attended_until=until)

    def _change(self, submission_id: str, **changes: Any) -> None:
        if submission_id in self._submissions:
            self._submissions[submission_id] = replace(self._submissions[submission_id], **changes)

    async def counts(self) -> Mapping[TaskStatus, int]:
        """Return the number of records in each status, including zeros."""
        shown = [record.status for record in self._records.values()]
        return {status: shown.count(status) for status in TaskStatus}

    async def tally(self) -> Mapping[str, float]:
        """Return the counters."""
        return dict(self._tally)

    async def add(self, sums: Mapping[str, float]) -> None:
        """Increase counters."""
        for key, amount in sums.items():
            self._tally[key] = self._tally.get(key, 0.0) + amount

    async def request_cancel(self, submission_id: str, task_id: str | None = None) -> JournalEntry:
        """Request the cancellation of a submission, or of one task of it: a journal entry."""
        if task_id is None and submission_id in self._submissions:
            self._submissions[submission_id] = replace(self._submissions[submission_id], cancelled=True)
        return self._journal.add(JournalEntry("", "cancel", submission_id, task_id))

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
        """Move a record to `mark`, change fields and send messages; None when the step is not allowed."""
        if fence is not None and self._leases is not None and not self._leases.valid(fence):
            raise FencedError(f"the lease {fence.name} has gone to another holder")
        record = self._records.get(task_id)
        if record is None or not allowed(record.mark, mark):
            return None
        # No await between check and change: this makes the step atomic.
        self._records[task_id] = record = replace(record, mark=mark, **(changes or {}))
        await self.add(add or {})
        await send_all(self._publisher, messages)
        return _brief(record)

    async def note(
        self, task_id: str, mark: StatusMark, changes: Mapping[str, Any], messages: Sequence[Message] = ()
    ) -> TaskRecord | None:
        """Change fields of a record that is exactly at `mark`."""
        record = self._records.get(task_id)
        if record is None or record.mark != mark:
            return None
        self._records[task_id] = record = replace(record, **changes)
        await send_all(self._publisher, messages)
        return _brief(record)

    def _earlier(self, key: str) -> Submission | None:
        submission_id, deadline = self._keys.get(key, ("", 0.0))
        return self._submissions.get(submission_id) if self._clock() < deadline else None

    def _next_position(self) -> float:
        """Return a position after all others: microseconds since the epoch, as in Redis."""
        return max(self._clock() * 1e6, max(self._order.values(), default=0.0) + 1)

    def _add(self, records: Sequence[TaskRecord], positions: Sequence[float]) -> None:
        for record, position in zip(records, positions, strict=True):
            self._records[record.task_id] = record
            self._order[record.task_id] = position


def _brief(record: TaskRecord) -> TaskRecord:
    return replace(record, raw_yaml="", parsed={}, shown_yaml=None, shown_parsed=None)


def _refuse_taken(ids: Sequence[str], known: Mapping[str, TaskRecord]) -> None:
    taken = sorted({task_id for task_id in ids if task_id in known or ids.count(task_id) > 1})
    if taken:
        raise ValueError(f"task id taken: {', '.join(taken)}")
