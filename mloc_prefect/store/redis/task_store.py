"""Task records and submissions in Redis. Keys: `mloc:task:<id>`, `mloc:tasks`, `mloc:submission:<id>`.

`mloc:tasks` and, for each status, `mloc:tasks:<STATUS>` are sorted sets of task ids in order of creation;
`mloc:submission:<id>:tasks` is the same for one submission. Only scripts write them, so they agree with the records.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from typing import TYPE_CHECKING, Any

from mloc_prefect.errors import ConflictError, FencedError
from mloc_prefect.store.interfaces import IDEMPOTENCY_SECONDS, JournalEntry
from mloc_prefect.store.redis import scripts
from mloc_prefect.store.redis.codec import (
    BRIEF_FIELDS,
    RECORD_FIELDS,
    SUBMISSION_FIELDS,
    SubmittedText,
    counted,
    decode_record,
    decode_submission,
    encode_record,
    encode_submission,
    encode_value,
    expand,
    hash_arguments,
    pairs,
)
from mloc_prefect.store.redis.journal import JOURNAL
from mloc_prefect.store.redis.service_leases import number_key
from mloc_prefect.store.states import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mloc_prefect.store.interfaces import Fence, Message
    from mloc_prefect.store.records import Submission, TaskRecord
    from mloc_prefect.store.redis.codec import Value
    from mloc_prefect.store.redis.redis_client import RedisClient
    from mloc_prefect.store.states import StatusMark

TASKS = "mloc:tasks"
TALLY = "mloc:tally"
_INLINE = 16 * 1024  # characters that are encoded faster than a thread is started
_FEW = 100  # records, as well
_PAGE = 500
"""Number of records in one request."""


class RedisTaskStore:
    """A `TaskStore` in Redis."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def submit(self, submission: Submission, records: Sequence[TaskRecord]) -> Submission:
        """Store a submission, its records and its journal entry, atomically."""
        key = submission.idempotency_key
        if len(submission.raw_yaml) <= _INLINE and len(records) <= _FEW:
            args = _submit_arguments(submission, records)
        else:
            args = await asyncio.to_thread(_submit_arguments, submission, records)
        keys = [TASKS, JOURNAL, submission_key(submission.submission_id), _idempotency_key(key)]
        code, *rest = await self._client.script(scripts.SUBMIT, keys, args)
        if code == b"conflict":
            raise ConflictError(
                f"the idempotency key {key!r} was used for another submission", hint="use a new key for new content"
            )
        if code == b"taken":
            raise ValueError(f"task id taken: {', '.join(sorted(task_id.decode() for task_id in rest))}")
        await self._client.settle(rest[-1])
        earlier = await self.submission(rest[0].decode()) if code == b"same" else None
        return earlier or submission

    async def create(self, records: Sequence[TaskRecord], submission: Submission | None = None) -> tuple[str, ...]:
        """Add records of runs that were started elsewhere; existing ones stay as they are."""
        listed = list(submission.task_ids) if submission else [record.task_id for record in records]
        args = hash_arguments(encode_submission(submission)) if submission else []
        for record in records:
            place = str(int(record.submitted_ts * 1e6)) if record.submitted_ts else ""
            index = listed.index(record.task_id) if record.task_id in listed else 0
            own_text = submission is None or record.raw_yaml != submission.raw_yaml
            args += [record.task_id, str(record.status), record.submission_id or "", place, str(index)]
            args += hash_arguments(encode_record(record, text=own_text))
        keys = [TASKS, submission_key(submission.submission_id) if submission else ""]
        return tuple(task_id.decode() for task_id in await self._client.script(scripts.CREATE, keys, args))

    async def get(self, task_id: str) -> TaskRecord | None:
        """Return one record, or None."""
        return (await self.get_many([task_id])).get(task_id)

    async def get_many(self, task_ids: Sequence[str], *, brief: bool = False) -> Mapping[str, TaskRecord]:
        """Return the records that exist, in the order of `task_ids`."""
        found: dict[str, TaskRecord] = {}
        for at in range(0, len(task_ids), _PAGE):
            found |= {r.task_id: r for r in await self._fetch(task_ids[at : at + _PAGE], brief=brief)}
        return found

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
        index = f"{submission_key(submission_id)}:tasks" if submission_id else f"{TASKS}:{status}" if status else TASKS
        found: list[TaskRecord] = []
        while limit is None or len(found) < limit:
            count = _PAGE if task_type or name or limit is None else min(limit - len(found), _PAGE)
            ids = await self._ids(index, after, count, newest_first=newest_first)
            if not ids:
                break
            found += [
                record
                for record in await self._fetch(ids, brief=brief, outlines=outlines)
                if status in {None, record.status}
                and task_type in {None, record.task_type}
                and (name is None or record.goes_by(name))
            ]
            after = ids[-1]
        return found[:limit]

    async def list(self, *, submission_id: str | None = None) -> Sequence[TaskRecord]:
        """Return all records, or those of one submission, in order of creation."""
        return await self.page(submission_id=submission_id)

    async def submission(self, submission_id: str) -> Submission | None:
        """Return one submission, or None."""
        with self._client.guard():
            values = await self._client.redis.hmget(submission_key(submission_id), SUBMISSION_FIELDS)
        return decode_submission(submission_id, values)

    async def keyed(self, key: str) -> Submission | None:
        """Return the submission that used an idempotency key within a day, or None."""
        with self._client.guard():
            submission_id = await self._client.redis.get(_idempotency_key(key))
        return await self.submission(submission_id.decode()) if submission_id else None

    async def dispatched(self, submission_id: str, flow_run: str) -> None:
        """Store the Prefect flow run of a submission."""
        await self._client.script(scripts.SET_IF_THERE, [submission_key(submission_id)], ["flow_run", flow_run])

    async def attend(self, submission_id: str, until: float) -> None:
        """Store until when the process that runs a submission counts as alive."""
        await self._client.script(
            scripts.SET_IF_THERE, [submission_key(submission_id)], ["attended_until", repr(until)]
        )

    async def counts(self) -> Mapping[TaskStatus, int]:
        """Return the number of records in each status, including zeros."""
        with self._client.guard():
            async with self._client.redis.pipeline(transaction=True) as pipe:
                for status in TaskStatus:
                    pipe.zcard(f"{TASKS}:{status}")
                return dict(zip(TaskStatus, await pipe.execute(), strict=True))

    async def tally(self) -> Mapping[str, float]:
        """Return the counters."""
        with self._client.guard():
            found = await self._client.redis.hgetall(TALLY)
        return {key.decode(): float(value) for key, value in found.items()}

    async def add(self, sums: Mapping[str, float]) -> None:
        """Increase counters."""
        with self._client.guard():
            async with self._client.redis.pipeline(transaction=True) as pipe:
                for key, amount in sums.items():
                    pipe.hincrbyfloat(TALLY, key, amount)
                await pipe.execute()

    async def request_cancel(self, submission_id: str, task_id: str | None = None) -> JournalEntry:
        """Request the cancellation of a submission, or of one task of it: a journal entry."""
        entry_id, pending = await self._client.script(
            scripts.CANCEL, [JOURNAL, submission_key(submission_id)], [submission_id, task_id or ""]
        )
        await self._client.settle(pending)
        return JournalEntry(entry_id.decode(), "cancel", submission_id, task_id)

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
        return await self._step("move", task_id, mark, changes or {}, messages, add or {}, fence)

    async def note(
        self, task_id: str, mark: StatusMark, changes: Mapping[str, Any], messages: Sequence[Message] = ()
    ) -> TaskRecord | None:
        """Change fields of a record that is exactly at `mark`."""
        return await self._step("note", task_id, mark, changes, messages, {}, None)

    async def _step(
        self,
        mode: str,
        task_id: str,
        mark: StatusMark,
        changes: Mapping[str, Any],
        messages: Sequence[Message],
        add: Mapping[str, float],
        fence: Fence | None,
    ) -> TaskRecord | None:
        encoded = {name: encode_value(name, value) for name, value in changes.items()}
        kept = {name: value for name, value in encoded.items() if value is not None}
        args: list[Value] = [task_id, mode, str(mark.attempt), str(int(mark.phase)), str(mark.phase.status)]
        args += [secrets.token_hex(6), str(fence.number) if fence else "0", *counted(BRIEF_FIELDS)]
        args += [*counted(pairs(kept)), *counted([name for name in encoded if name not in kept])]
        args += counted(pairs({key: repr(float(amount)) for key, amount in add.items()}))
        args += [part for channel, message in messages for part in (channel, json.dumps(message, ensure_ascii=False))]
        keys = [TASKS, task_key(task_id), TALLY, number_key(fence.name) if fence else ""]
        values = await self._client.script(scripts.TRANSITION, keys, args)
        if values == b"fenced":
            assert fence is not None
            raise FencedError(f"the lease {fence.name} has gone to another holder")
        return decode_record(values, BRIEF_FIELDS) if values else None

    async def _ids(self, index: str, after: str | None, count: int, *, newest_first: bool) -> Sequence[str]:
        """Return the next task ids of an index after `after`, which may have left this index since."""
        ids = await self._client.script(
            scripts.NEXT_IDS, [TASKS, index], [after or "", count, "1" if newest_first else ""]
        )
        return [task_id.decode() for task_id in ids]

    async def _fetch(self, task_ids: Sequence[str], *, brief: bool, outlines: bool = False) -> Sequence[TaskRecord]:
        if brief or not outlines:
            fields = BRIEF_FIELDS if brief else RECORD_FIELDS
            return await self._decoded(await self._rows(task_ids, fields), fields)
        rows = await self._rows(task_ids, BRIEF_FIELDS)
        at, outline = BRIEF_FIELDS.index("task_id"), BRIEF_FIELDS.index("outline")
        short = [task_id for task_id, row in zip(task_ids, rows, strict=True) if row[at] and row[outline] is None]
        whole = {record.task_id: record for record in await self._fetch(short, brief=False)} if short else {}
        found = [
            whole.get(task_id) or decode_record(row, BRIEF_FIELDS) for task_id, row in zip(task_ids, rows, strict=True)
        ]
        return [record for record in found if record is not None]

    async def _rows(self, task_ids: Sequence[str], fields: Sequence[str]) -> Sequence[Sequence[bytes | None]]:
        with self._client.guard():
            async with self._client.redis.pipeline(transaction=False) as pipe:
                for task_id in task_ids:
                    pipe.hmget(task_key(task_id), fields)
                rows: Sequence[Sequence[bytes | None]] = await pipe.execute()
        return rows

    async def _decoded(self, rows: Sequence[Sequence[bytes | None]], fields: Sequence[str]) -> Sequence[TaskRecord]:
        at = fields.index("submission_id")
        long = "raw_yaml" in fields
        texts = await self._texts({row[at] for row in rows if row[at]}) if long else {}
        found = [decode_record(row, fields, texts.get(row[at] or b"")) for row in rows]
        return [record for record in found if record is not None]

    async def _texts(self, submissions: Iterable[bytes | None]) -> Mapping[bytes, SubmittedText]:
        """Return the submitted text of each submission, and what clients see of it."""
        wanted = [name for name in submissions if name is not None]
        with self._client.guard():
            async with self._client.redis.pipeline(transaction=False) as pipe:
                for submission_id in wanted:
                    pipe.hmget(submission_key(submission_id.decode()), ("raw_yaml", "shown_yaml", "masked"))
                texts = await pipe.execute()
        return {
            name: SubmittedText(expand(text), None if shown is None else expand(shown), masked is not None)
            for name, (text, shown, masked) in zip(wanted, texts, strict=True)
            if text is not None
        }


def _submit_arguments(submission: Submission, records: Sequence[TaskRecord]) -> list[Value]:
    args: list[Value] = [
        submission.submission_id,
        submission.digest or "",
        str(IDEMPOTENCY_SECONDS),
        *counted([record.task_id for record in records]),
        *hash_arguments(encode_submission(submission)),
    ]
    for record in records:
        fields = encode_record(record, text=record.raw_yaml != submission.raw_yaml)
        args += [str(record.status), *hash_arguments(fields)]
    return args


def task_key(task_id: str) -> str:
    """Return the key of a record."""
    return f"mloc:task:{task_id}"


def submission_key(submission_id: str) -> str:
    """Return the key of a submission."""
    return f"mloc:submission:{submission_id}"


def _idempotency_key(key: str | None) -> str:
    """Return the Redis key of an idempotency key, which may be any text: hashed, to limit its length."""
    return f"mloc:idempotency:{hashlib.sha256(key.encode()).hexdigest()}" if key is not None else ""
