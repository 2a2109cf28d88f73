"""Finds the tasks that an id means: a task or a submission, by the full id or its first characters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import UUID

from mloc_prefect.client.client_steps import AskStep
from mloc_prefect.client.endpoint_replies import json_of
from mloc_prefect.client.errors import NotFoundError
from mloc_prefect.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import httpx

    from mloc_prefect.client.client_steps import Steps
    from mloc_prefect.client.endpoint_address import EndpointAddress

Record = dict[str, Any]
TASKS = "/api/v1/tasks"

_SHORT = 8
_PAGE = 500
_SHOWN = 4  # candidates that a message names


def find_tasks(address: EndpointAddress, wanted: str) -> Steps[list[Record]]:
    """Return the task `wanted`, or all tasks of the submission `wanted` in order of creation.

    Args:
        address: The endpoint.
        wanted: An id, or its first characters if they are unambiguous.

    Raises:
        UsageError: More than one id starts with `wanted`, or it is empty.
        NotFoundError: No id starts with it.
    """
    text = wanted.strip()
    if not text:
        raise UsageError("the id is empty", hint="`mloc list` shows the ids")
    found: httpx.Response = yield AskStep("GET", f"{TASKS}/{quoted(text)}", accepted=(404,))
    if found.status_code != 404:
        return [json_of(address, found)]
    if _is_whole(text):
        answer: httpx.Response = yield AskStep("GET", TASKS, {"params": {"submission_id": text}})
        tasks: list[Record] = [record for record in json_of(address, answer) if record.get("submission_id") == text]
        if tasks:
            return tasks
        raise _unknown(address, text)
    return (yield from _by_prefix(address, text.lower()))


def find_task(address: EndpointAddress, wanted: str) -> Steps[Record]:
    """Return the only task that `wanted` means; see `find_tasks`.

    Raises:
        UsageError: There is more than one.
        NotFoundError: There is none.
    """
    tasks = yield from find_tasks(address, wanted)
    if len(tasks) > 1:
        names = ", ".join(f"{short(task['task_id'])} ({label(task)})" for task in tasks[:_SHOWN])
        raise UsageError(f"{wanted} is a submission of {len(tasks)} tasks", hint=f"name one of them: {names}")
    return tasks[0]


def label(record: Mapping[str, Any]) -> str:
    """Return the name of a task for people: its stage, otherwise the name in its spec."""
    if record.get("graph_node_name"):
        return str(record["graph_node_name"])
    metadata = (record.get("parsed") or {}).get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return str(name or short(record["task_id"]))


def short(task_id: object) -> str:
    """Return the first characters of an id."""
    return str(task_id)[:_SHORT]


def quoted(text: str) -> str:
    """Return `text` quoted as one component of a URL path."""
    return quote(text, safe="")


def _by_prefix(address: EndpointAddress, prefix: str) -> Steps[list[Record]]:
    tasks: dict[str, Record] = {}
    submissions: dict[str, list[Record]] = {}
    path: str | None = TASKS
    more: dict[str, Any] = {"params": {"limit": _PAGE}}
    while path is not None:
        answer: httpx.Response = yield AskStep("GET", path, more)
        for record in json_of(address, answer):
            submission = str(record.get("submission_id") or "")
            if str(record["task_id"]).lower().startswith(prefix):
                tasks[record["task_id"]] = record
            elif submission.lower().startswith(prefix):
                submissions.setdefault(submission, []).append(record)
        path = answer.links.get("next", {}).get("url")
        more = {}  # the link to the next page contains the parameters
    if len(tasks) + len(submissions) > 1:
        raise _ambiguous(prefix, [*tasks, *submissions])
    if tasks:
        return list(tasks.values())
    if not submissions:
        raise _unknown(address, prefix)
    return next(iter(submissions.values()))


def _is_whole(text: str) -> bool:
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False


def _unknown(address: EndpointAddress, text: str) -> NotFoundError:
    return NotFoundError(f"{address.shown} knows no task or submission {text!r}", hint="`mloc list` shows the ids")


def _ambiguous(prefix: str, ids: Sequence[str]) -> UsageError:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    text = f"{len(ids)} ids start with {prefix!r}: {', '.join(ids[:_SHOWN])}{more}"
    return UsageError(text, hint="write more characters of the id")
