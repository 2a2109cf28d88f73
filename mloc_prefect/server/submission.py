"""Submitting a spec: it is planned, checked, stored with its journal entry, and answered. [protocol 1.3].

Prefect is not called here: the bridge reads the journal and creates the run (decision 9).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mloc_prefect.artifacts.spec_rules import SpecRules
from mloc_prefect.diagnostics.diagnostic import errors
from mloc_prefect.execution.failures import no_executor_text
from mloc_prefect.flow.options import RunOptions
from mloc_prefect.flow.preflight import is_unwritten
from mloc_prefect.plan import check
from mloc_prefect.server.responses import ErrorResponse
from mloc_prefect.server.spec_errors import spec_problem
from mloc_prefect.store.record_factory import planned_records
from mloc_prefect.store.record_views import masked_submission
from mloc_prefect.store.records import Submission
from mloc_prefect.store.states import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mloc_prefect.diagnostics.diagnostic import Diagnostic
    from mloc_prefect.plan.workflow_plan import WorkflowPlan
    from mloc_prefect.server.dependencies import EndpointContext
    from mloc_prefect.store.records import TaskRecord

FILE = "<submitted>"
"""The file name of submitted text in messages."""

_INLINE = 16 * 1024  # characters that are parsed faster than a thread is started
_LONGEST_KEY = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionRequest:
    """The submission that a client requests.

    Attributes:
        text: The spec; bytes if its encoding is unknown.
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
        """Hash of the request, without the key."""
        text = self.text if isinstance(self.text, bytes) else self.text.encode("utf-8", "surrogatepass")
        rest = json.dumps([sorted(self.parameters.items()), self.strict]).encode()
        return hashlib.sha256(text + b"\0" + rest).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A stored submission.

    Attributes:
        submission: The new submission, or the earlier one with the same idempotency key.
        records: Its current records.
        warnings: Warnings about the spec.
        replayed: Whether it is an earlier submission.
    """

    submission: Submission
    records: Sequence[TaskRecord]
    warnings: tuple[Diagnostic, ...]
    replayed: bool


async def examine(
    endpoint: EndpointContext, order: SubmissionRequest
) -> tuple[WorkflowPlan | None, tuple[Diagnostic, ...]]:
    """Return the plan, or None, and all diagnostics of the text; long texts are parsed in a thread."""
    settings, here = endpoint.settings, Path.cwd()
    rules = SpecRules(settings=settings, submitted=True, results=endpoint.results, base=here, working=here)

    def read() -> tuple[WorkflowPlan | None, tuple[Diagnostic, ...]]:
        return check(
            order.text,
            FILE,
            strict=order.strict,
            max_bytes=settings.max_spec_bytes,
            max_tasks=settings.max_tasks,
            allowed_env=frozenset(name.strip() for name in settings.allowed_env.split(",") if name.strip()),
            params=order.parameters,
            judge=rules.problems,
        )

    # Only names below an allowed `*.domain` may be looked up, which must not hold up others.
    quick = len(order.text) <= _INLINE and "*" not in settings.allowed_hosts
    return read() if quick else await asyncio.to_thread(read)


async def submit(endpoint: EndpointContext, order: SubmissionRequest) -> Accepted:
    """Store a submission, completely or not at all.

    Raises:
        ErrorResponse: 400 for an invalid spec, an unknown dependency, an invalid key or a task that no worker can run;
            409 for a dependency that has failed.
        ConflictError: The idempotency key was used for other content.
        StoreError: Redis cannot be reached.
    """
    _check_key(order.key)
    earlier = await endpoint.stores.tasks.keyed(order.key) if order.key is not None else None
    if earlier is not None and earlier.digest == order.digest:
        return await _replayed(endpoint, earlier)  # even if the same spec would be refused now
    plan, found = await examine(endpoint, order)
    if plan is None:
        raise spec_problem(errors(found))
    await _check_dependencies(endpoint, plan)
    await endpoint.fleet.refresh()
    _check_executors(endpoint, plan)
    now = datetime.now(UTC)
    submission_id = str(uuid4())
    ids = RunOptions(settings=endpoint.settings, submission_id=submission_id).ids(plan, "")
    raw_yaml = order.text if isinstance(order.text, str) else order.text.decode()
    submission = Submission(
        submission_id=submission_id,
        raw_yaml=raw_yaml,
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

    def make() -> tuple[Submission, tuple[TaskRecord, ...]]:
        masked = masked_submission(submission)
        return masked, planned_records(
            plan,
            masked,
            ids,
            max_attempts=endpoint.settings.max_retries + 1,
            submitted_ts=now.timestamp(),
            waiting={key: reason for key, reason in reasons.items() if reason is not None},
        )

    submission, records = make() if len(raw_yaml) <= _INLINE else await asyncio.to_thread(make)
    stored = await endpoint.stores.tasks.submit(submission, records)
    if stored.submission_id == submission_id:
        return Accepted(submission=stored, records=records, warnings=plan.warnings, replayed=False)
    return await _replayed(endpoint, stored)


async def _replayed(endpoint: EndpointContext, earlier: Submission) -> Accepted:
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
        raise ErrorResponse(400, f"Idempotency-Key must be 1 to {_LONGEST_KEY} printable ASCII characters")


def _check_executors(endpoint: EndpointContext, plan: WorkflowPlan) -> None:
    """Refuse tasks that no worker can run: there is no executor for them, and no MLOC worker is registered."""
    mode = endpoint.settings.dispatch
    if mode == "original" or (mode == "auto" and endpoint.fleet.originals):
        return
    lacking = [stage for stage in plan.stages if is_unwritten(stage.executor)]
    if not lacking:
        return
    names = ", ".join(f"{stage.key!r} ({stage.task_type})" for stage in lacking)
    why = "MLOC workers may support it, but MLOC_DISPATCH=ours excludes them"
    if mode == "auto":
        why = "an MLOC worker may support it, but none is registered"
    raise ErrorResponse(400, f"stage{'s' if len(lacking) > 1 else ''} {names} cannot run: {no_executor_text()}; {why}")


async def _check_dependencies(endpoint: EndpointContext, plan: WorkflowPlan) -> None:
    """Refuse tasks that can never start; the original waits for unknown or failed tasks forever.

    [protocol 7, quirk 13]
    """
    wanted = list(dict.fromkeys(task_id for stage in plan.stages for task_id in stage.external))
    if not wanted:
        return
    known = await endpoint.stores.tasks.get_many(wanted)
    for task_id in wanted:
        if task_id not in known:
            raise ErrorResponse(400, f"dependsOn names task {task_id}, which does not exist")
        record = known[task_id]
        if record.status in {TaskStatus.FAILED, TaskStatus.CANCELLED}:
            why = f": {record.error}" if record.error else ""
            how = "was cancelled" if record.status is TaskStatus.CANCELLED else "failed"
            raise ErrorResponse(409, f"Dependency {task_id} {how}{why}")
