"""The steps of the clients' methods: which requests, in which order, and what is made of the responses."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from mloc_prefect.artifacts.task_result import TaskResult
from mloc_prefect.client.client_steps import AskStep, GiveStep, PauseStep, SendFileStep
from mloc_prefect.client.endpoint_replies import json_of
from mloc_prefect.client.errors import NotFoundError, WaitTimeoutError
from mloc_prefect.client.stream_lines import EVENT_STREAM
from mloc_prefect.client.task_lookup import TASKS, find_task, find_tasks, label, quoted, short
from mloc_prefect.errors import DispatchError, UsageError
from mloc_prefect.process.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mloc_prefect.client.client_steps import Steps
    from mloc_prefect.client.endpoint_address import EndpointAddress
    from mloc_prefect.client.task_lookup import Record

ENDS = frozenset({"DONE", "FAILED", "CANCELLED"})
"""Statuses that no task leaves."""

RESULTS = "/api/v1/results"
_LOOKS = Backoff(first=0.25, most=2.0, factor=1.3)
_OUTAGE_SECONDS = 120.0  # that the endpoint may be unreachable while tasks are watched
_CHANGES = ("status", "attempts", "error", "assigned_worker")


def ask(address: EndpointAddress, method: str, path: str, **more: Any) -> Steps[Any]:
    """Return the JSON value that the response to a request is."""
    answer: httpx.Response = yield AskStep(method, path, more)
    return json_of(address, answer)


def submit(
    address: EndpointAddress,
    spec: str | Path | Mapping[str, Any],
    *,
    parameters: Mapping[str, str] | None,
    strict: bool,
    key: str | None,
    check_only: bool = False,
) -> Steps[dict[str, Any]]:
    """Submit a spec, or only check it."""
    text = _spec_text(spec)
    headers = {} if key is None else {"Idempotency-Key": key}
    more: dict[str, Any] = {"params": {"strict": "true"} if strict else None}
    if parameters:
        more |= {"json": {"yaml": text, "parameters": dict(parameters)}, "headers": headers}
    else:
        more |= {"content": text.encode(), "headers": {**headers, "Content-Type": "text/yaml"}}
    answer: dict[str, Any] = yield from ask(address, "POST", f"{TASKS}/validate" if check_only else TASKS, **more)
    return answer


def list_tasks(address: EndpointAddress, **filters: Any) -> Steps[list[Record]]:
    """Return the records that match the filters; those that are None do not count."""
    given = {name: value for name, value in filters.items() if value is not None}
    found: list[Record] = yield from ask(address, "GET", TASKS, params=given or None)
    return found


def watch(
    address: EndpointAddress,
    wanted: str | Sequence[str],
    *,
    timeout: float | None,
    on_outage: Callable[[str], None] | None,
    clock: Callable[[], float] = time.monotonic,
) -> Steps[None]:
    """Give the record of each task at first and after each change, until all have ended.

    Args:
        address: The endpoint.
        wanted: Ids of tasks or submissions.
        timeout: Longest time in seconds, or None.
        on_outage: Is told once that the endpoint does not answer.
        clock: Returns seconds.
    """
    unknown = list(dict.fromkeys([wanted] if isinstance(wanted, str) else wanted))
    records: dict[str, Record] = {}
    began, away = clock(), 0.0
    for pause in _LOOKS:
        try:
            yield from _look_again(address, records)
            while unknown:
                for record in (yield from find_tasks(address, unknown[0])):
                    yield from _give_change(records, record)
                unknown.pop(0)
        except DispatchError as error:  # the endpoint may be restarting; accepted tasks are kept
            if away >= _OUTAGE_SECONDS:
                raise
            if away == 0 and on_outage is not None:
                on_outage(error.message)
            away += pause
        else:
            away = 0.0
            if all(record["status"] in ENDS for record in records.values()):
                return
        if timeout is not None and clock() - began + pause > timeout:
            raise _not_ended(records, timeout)
        yield PauseStep(pause)


def result(address: EndpointAddress, wanted: str) -> Steps[TaskResult]:
    """Return the result of a task.

    Raises:
        NotFoundError: It has none (yet).
    """
    answer: httpx.Response = yield AskStep("GET", f"{RESULTS}/{quoted(wanted)}", accepted=(404,))
    if answer.status_code == 404:  # not the whole id of a task with a result
        record = yield from find_task(address, wanted)
        if record["task_id"] != wanted:
            answer = yield AskStep("GET", f"{RESULTS}/{quoted(record['task_id'])}", accepted=(404,))
        if answer.status_code == 404:
            why = f": {record['error']}" if record.get("error") else ""
            raise NotFoundError(f"task {label(record)} has no result: it is {record['status']}{why}")
    return TaskResult(json_of(address, answer))


def cancel(address: EndpointAddress, wanted: str, *, submission: bool) -> Steps[dict[str, Any]]:
    """Cancel a task, or all tasks of a submission."""
    records = yield from find_tasks(address, wanted)
    params = {"submission": "true"} if submission or len(records) > 1 else None
    path = f"{TASKS}/{quoted(records[0]['task_id'])}/cancel"
    answer: dict[str, Any] = yield from ask(address, "POST", path, params=params)
    return answer


def upload(address: EndpointAddress, wanted: str, file: Path, name: str | None) -> Steps[str]:
    """Upload a file of a task; return its path at the endpoint."""
    record = yield from find_task(address, wanted)
    answer: httpx.Response = yield SendFileStep(
        f"{RESULTS}/{quoted(record['task_id'])}/files", file, file.name if name is None else name
    )
    return str(json_of(address, answer)["path"])


def log_path(task_id: str, *, follow: bool, tail: int | None) -> str:
    """Return the path and query of a task's log."""
    given = {"follow": "true" if follow else None, "tail": tail}
    query = "&".join(f"{name}={value}" for name, value in given.items() if value is not None)
    return f"{TASKS}/{quoted(task_id)}/logs{'?' if query else ''}{query}"


def event_request(channels: Sequence[str], task_id: str | None, last_id: str | None) -> tuple[str, dict[str, str]]:
    """Return path with query, and headers, of a subscription."""
    given = {"channel": list(channels), "task_id": [] if task_id is None else [task_id]}
    return str(httpx.URL("/api/v1/events", params=given)), EVENT_STREAM | (
        {} if last_id is None else {"Last-Event-ID": last_id}
    )


def _look_again(address: EndpointAddress, records: dict[str, Record]) -> Steps[None]:
    for task_id in [task_id for task_id, record in records.items() if record["status"] not in ENDS]:
        answer: httpx.Response = yield AskStep("GET", f"{TASKS}/{quoted(task_id)}")
        yield from _give_change(records, json_of(address, answer))


def _give_change(records: dict[str, Record], record: Record) -> Steps[None]:
    before = records.get(record["task_id"])
    records[record["task_id"]] = record
    if before is None or any(before.get(key) != record.get(key) for key in _CHANGES):
        yield GiveStep(record)


def _not_ended(records: Mapping[str, Record], timeout: float) -> WaitTimeoutError:
    left = [f"{label(r)} {short(r['task_id'])} is {r['status']}" for r in records.values() if r["status"] not in ENDS]
    text = f"after {timeout:g} s {len(left)} of {len(records)} tasks have not ended: {', '.join(left[:4])}"
    return WaitTimeoutError(text, hint="they go on; `mloc cancel` stops them")


def _spec_text(spec: str | Path | Mapping[str, Any]) -> str:
    if isinstance(spec, Mapping):
        return json.dumps(spec, ensure_ascii=False)
    if isinstance(spec, Path):
        try:
            return spec.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read {spec}: {error}", hint="give the path of a spec file") from None
    if "\n" not in spec and spec.endswith((".yaml", ".yml", ".json")):
        raise UsageError(f"{spec!r} is not a spec", hint=f"for a file, write Path({spec!r})")
    return spec
