"""A submission: parsed, planned, stored with its journal entry, answered. [protocol 1.3].

Prefect is not on this way: whoever reads the journal makes the run (architecture, decision 9).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mloc_prefect.bridge.planned import planned_records
from mloc_prefect.bridge.records import Submission
from mloc_prefect.bridge.states import TaskStatus
from mloc_prefect.execution.failures import no_executor_text
from mloc_prefect.orchestrate.options import RunOptions
from mloc_prefect.orchestrate.preflight import is_unwritten
from mloc_prefect.plan import check
from mloc_prefect.server.replies import Problem
from mloc_prefect.server.wording import spec_problem
from mloc_prefect.spec.diagnostics import errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mloc_prefect.bridge.records import TaskRecord
    from mloc_prefect.plan.model import WorkflowPlan
    from mloc_prefect.server.context import Endpoint
    from mloc_prefect.spec.diagnostics import Diagnostic

FILE = "<submitted>"
"""What messages call the text."""

_INLINE = 16 * 1024  # characters that are parsed in less time than a thread costs
_LONGEST_KEY = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a client asks for.

    Attributes:
        text: The spec; bytes are UTF-8 as far as the client knows.
        parameters: Values of `${param.NAME}`.
        strict: Treat warnings as errors, those of executors too.
        key: `Idempotency-Key`, or None.
    """

    text: str | bytes
    parameters: Mapping[str, str]
    strict: bool = False
    key: str | None = None

    @property
    def digest(self) -> str:
        """Hash of what is asked for."""
        text = self.text if isinstance(self.text, bytes) else self.text.encode("utf-8", "surrogatepass")
        rest = json.dumps([sorted(self.parameters.items()), self.strict]).encode()
        return hashlib.sha256(text + b"\0" + rest).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What was stored.

    Attributes:
        submission: The submission: ours, or the earlier one of the same idempotency key.
        records: Its records as they are now.
        warnings: What was noticed in the spec.
        replayed: Whether it was there already.
    """

    submission: Submission
    records: Sequence[TaskRecord]
    warnings: tuple[Diagnostic, ...]
    replayed: bool


async def examine(endpoint: Endpoint, order: Order) -> tuple[WorkflowPlan | None, tuple[Diagnostic, ...]]:
    """Return the plan, or None, and everything found in the text; a long text is read in a thread."""
    settings = endpoint.settings

    def read() -> tuple[WorkflowPlan | None, tuple[Diagnostic, ...]]:
        return check(
            order.text,
            FILE,
            strict=order.strict,
            max_bytes=settings.max_spec_bytes,
            allowed_env=frozenset(name.strip() for name in settings.allowed_env.split(",") if name.strip()),
            params=tuple(order.parameters),
        )

    return read() if len(order.text) <= _INLINE else await asyncio.to_thread(read)


async def submit(endpoint: Endpoint, order: Order) -> Accepted:
    """Store what is asked for, all of it or nothing.

    Raises:
        Problem: 400 for a bad spec, an unknown dependency, a bad key or a task that nobody here can run; 409 for a
            dependency that has failed.
        ConflictError: The idempotency key was used for other content.
        StoreError: Redis cannot be reached.
    """
    _check_key(order.key)
    earlier = await endpoint.stores.tasks.keyed(order.key) if order.key is not None else None
    if earlier is not None and earlier.digest == order.digest:
        return await _replayed(endpoint, earlier)  # even where the same could not be submitted any more
    plan, found = await examine(endpoint, order)
    if plan is None:
        raise spec_problem(errors(found))
    await _check_dependencies(endpoint, plan)
    await endpoint.fleet.refresh()
    _check_executors(endpoint, plan)
    now = datetime.now(UTC)
    submission_id = str(uuid4())
    ids = RunOptions(settings=endpoint.settings, submission_id=submission_id).ids(plan, "")
    submission = Submission(
        submission_id=submission_id,
        raw_yaml=order.text if isinstance(order.text, str) else order.text.decode(),
        task_ids=tuple(ids[stage.key] for stage in plan.stages),
        submitted_at=now.isoformat(),
        name=plan.name,
        file=FILE,
        parameters=dict(order.parameters),
        strict=order.strict,
        idempotency_key=order.key,
        digest=order.digest if order.key is not None else None,
    )
    reasons = {stage.key: endpoint.fleet.reason_to_wait(stage.resources) for stage in plan.stages}
    records = planned_records(
        plan,
        submission,
        ids,
        max_attempts=endpoint.settings.max_retries + 1,
        submitted_ts=now.timestamp(),
        waiting={key: reason for key, reason in reasons.items() if reason is not None},
    )
    stored = await endpoint.stores.tasks.submit(submission, records)
    if stored.submission_id == submission_id:
        return Accepted(submission=stored, records=records, warnings=plan.warnings, replayed=False)
    return await _replayed(endpoint, stored)


async def _replayed(endpoint: Endpoint, earlier: Submission) -> Accepted:
    records = await endpoint.stores.tasks.get_many(earlier.task_ids)
    return Accepted(submission=earlier, records=tuple(records.values()), warnings=(), replayed=True)


def answer(accepted: Accepted) -> dict[str, Any]:
    """Return the body of the answer, with the keys of both generations."""
    body: dict[str, Any] = {
        "ok": True,
        "count": len(accepted.records),
        "tasks": [_task(record) for record in accepted.records],
        "submission_id": accepted.submission.submission_id,
    }
    if accepted.warnings:
        body["warnings"] = [
            f"line {d.line}, column {d.column}: {d.message}" if d.line else d.message for d in accepted.warnings
        ]
    return body


def _task(record: TaskRecord) -> dict[str, Any]:
    return {
        "task_id": record.task_id,
        "status": str(record.status),
        "assigned_worker": record.assigned_worker,
        "topic": record.topic,
        "waiting_on": list(record.depends_on),
        "retries": record.retries,
        "max_retries": record.max_attempts - 1,
        "depends_on": list(record.depends_on),
        "attempts": record.attempts,
        "max_attempts": record.max_attempts,
        "load": record.load,
    }


def _check_key(key: str | None) -> None:
    if key is not None and not (1 <= len(key) <= _LONGEST_KEY and key.isascii() and key.isprintable()):
        raise Problem(400, f"Idempotency-Key must be 1 to {_LONGEST_KEY} printable ASCII characters")


def _check_executors(endpoint: Endpoint, plan: WorkflowPlan) -> None:
    """Refuse what no worker can run: ours have no code for it, and there are none of the original protocol."""
    mode = endpoint.settings.dispatch
    if mode == "original" or (mode == "auto" and endpoint.fleet.originals):
        return
    lacking = [stage for stage in plan.stages if is_unwritten(stage.executor)]
    if not lacking:
        return
    names = ", ".join(f"{stage.key!r} ({stage.task_type})" for stage in lacking)
    why = "MLOC_DISPATCH=ours keeps it from workers of the original protocol, which might"
    if mode == "auto":
        why = "a worker of the original protocol might, but none is registered"
    raise Problem(400, f"stage{'s' if len(lacking) > 1 else ''} {names} cannot run: {no_executor_text()}; {why}")


async def _check_dependencies(endpoint: Endpoint, plan: WorkflowPlan) -> None:
    """Refuse what could never start: the original waits for unknown and failed tasks for ever. [protocol 7, 13]."""
    wanted = list(dict.fromkeys(task_id for stage in plan.stages for task_id in stage.external))
    if not wanted:
        return
    known = await endpoint.stores.tasks.get_many(wanted)
    for task_id in wanted:
        if task_id not in known:
            raise Problem(400, f"dependsOn names task {task_id}, which is not known here")
        record = known[task_id]
        if record.status in {TaskStatus.FAILED, TaskStatus.CANCELLED}:
            why = f": {record.error}" if record.error else ""
            how = "was cancelled" if record.status is TaskStatus.CANCELLED else "failed"
            raise Problem(409, f"Dependency {task_id} {how}{why}")
