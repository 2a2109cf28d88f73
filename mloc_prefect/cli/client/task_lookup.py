"""Finds the tasks that an id means: a task or a submission, by the full id or its first characters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from mloc_prefect.cli.client.endpoint_client import quoted
from mloc_prefect.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mloc_prefect.cli.client.endpoint_client import EndpointClient

Record = dict[str, Any]
TASKS = "/api/v1/tasks"

_SHORT = 8
_PAGE = 500
_SHOWN = 4  # candidates that a message names


def find_tasks(endpoint: EndpointClient, wanted: str) -> list[Record]:
    """Return the task `wanted`, or all tasks of the submission `wanted` in order of creation.

    Args:
        endpoint: The endpoint.
        wanted: An id, or its first characters if they are unambiguous.

    Raises:
        UsageError: No id, or more than one, starts with `wanted`.
    """
    text = wanted.strip()
    if not text:
        raise UsageError("the id is empty", hint="`mloc list` shows the ids")
    found = endpoint.find(f"{TASKS}/{quoted(text)}")
    if found is not None:
        return [found]
    if _is_whole(text):
        tasks = [r for r in endpoint.get(TASKS, submission_id=text) if r.get("submission_id") == text]
        if tasks:
            return tasks
        raise _unknown(endpoint, text)
    return _by_prefix(endpoint, text.lower())


def find_task(endpoint: EndpointClient, wanted: str) -> Record:
    """Return the only task that `wanted` means; see `find_tasks`.

    Raises:
        UsageError: There is none, or more than one.
    """
    tasks = find_tasks(endpoint, wanted)
    if len(tasks) > 1:
        names = ", ".join(f"{short(task['task_id'])} ({label(task)})" for task in tasks[:_SHOWN])
        raise UsageError(f"{wanted} is a submission of {len(tasks)} tasks", hint=f"name one of them: {names}")
    return tasks[0]


def all_tasks(endpoint: EndpointClient, **filters: Any) -> Iterator[Record]:
    """Yield the tasks that match the filters, page by page."""
    path: str | None = TASKS
    parameters: dict[str, Any] = {"limit": _PAGE, **filters}
    while path is not None:
        records, path = endpoint.page(path, **parameters)
        yield from records
        parameters = {}  # the link to the next page contains them


def label(record: Record) -> str:
    """Return the name of a task for people: its stage, otherwise the name in its spec."""
    if record.get("graph_node_name"):
        return str(record["graph_node_name"])
    metadata = (record.get("parsed") or {}).get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return str(name or short(record["task_id"]))


def short(task_id: object) -> str:
    """Return the first characters of an id."""
    return str(task_id)[:_SHORT]


def _by_prefix(endpoint: EndpointClient, prefix: str) -> list[Record]:
    tasks: dict[str, Record] = {}
    submissions: dict[str, list[Record]] = {}
    for record in all_tasks(endpoint):
        submission = str(record.get("submission_id") or "")
        if str(record["task_id"]).lower().startswith(prefix):
            tasks[record["task_id"]] = record
        elif submission.lower().startswith(prefix):
            submissions.setdefault(submission, []).append(record)
    if len(tasks) + len(submissions) > 1:
        raise _ambiguous(prefix, [*tasks, *submissions])
    if tasks:
        return list(tasks.values())
    if not submissions:
        raise _unknown(endpoint, prefix)
    return next(iter(submissions.values()))


def _is_whole(text: str) -> bool:
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False


def _unknown(endpoint: EndpointClient, text: str) -> UsageError:
    return UsageError(f"{endpoint.shown} knows no task or submission {text!r}", hint="`mloc list` shows the ids")


def _ambiguous(prefix: str, ids: Sequence[str]) -> UsageError:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    text = f"{len(ids)} ids start with {prefix!r}: {', '.join(ids[:_SHOWN])}{more}"
    return UsageError(text, hint="write more characters of the id")
