"""`mloc submit`, `status`, `list`, `cancel`, `workers`: one call of the endpoint each, and what came of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mloc_prefect.cli.boundary import EXIT_SPEC, examples
from mloc_prefect.cli.check import Overrides, Parameters, parameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.cli.client.endpoint import Endpoint

SUBMIT_EXAMPLES = examples(
    "mloc submit task.yaml",
    "mloc submit task.yaml --watch",
    "mloc submit task.yaml --set spec.inference.max_tokens=32 --json",
)
STATUS_EXAMPLES = examples("mloc status 5d1e7c2a    # a task or a submission; the first characters are enough")
LIST_EXAMPLES = examples("mloc list", "mloc list --status FAILED --limit 50", "mloc list --json")
CANCEL_EXAMPLES = examples(
    "mloc cancel 5d1e7c2a", "mloc cancel 5d1e7c2a --submission    # all that was submitted with it"
)
WORKERS_EXAMPLES = examples("mloc workers")

Id = Annotated[str, typer.Argument(metavar="ID", help="Task or submission; the first characters are enough.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_ROWS = 20


def submit(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Spec file; `-` reads standard input.")],
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Wait until all tasks have ended.")] = False,
    overrides: Overrides = None,
    param: Parameters = None,
    strict: Annotated[bool, typer.Option("--strict", help="Treat warnings as errors.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send a spec to the endpoint of MLOC_URL (default: the `mloc up` of this machine), where it runs.

    The spec is checked here first. Exit with --watch: 0 all tasks DONE, 5 one failed or was cancelled.
    """
    from mloc_prefect.cli.client.sending import Order, prepare
    from mloc_prefect.cli.client.watching import watch_tasks

    order = prepare(Order(file, tuple(overrides or ()), parameters(param or []), strict))
    if order is None:
        raise typer.Exit(EXIT_SPEC)
    with _endpoint() as endpoint:
        answer = endpoint.post("/api/v1/tasks", params={"strict": "true"} if strict else None, **order)
        if as_json:
            _print(answer)
        else:
            _show_submission(endpoint, answer)
        if watch:
            ids = [task["task_id"] for task in answer["tasks"]]
            raise typer.Exit(watch_tasks(endpoint, ids, stream=sys.stderr if as_json else sys.stdout))


def status(wanted: Id, *, as_json: AsJson = False) -> None:
    """Show a task, or all tasks of a submission."""
    from mloc_prefect.cli.client.finding import find_tasks
    from mloc_prefect.cli.client.tables import record_lines

    with _endpoint() as endpoint:
        records = find_tasks(endpoint, wanted)
    if as_json:
        _print(records if len(records) > 1 else records[0])
        return
    print("\n\n".join("\n".join(record_lines(record)) for record in records))


def list_tasks(
    *,
    status: Annotated[
        str | None, typer.Option(metavar="STATE", help="Only PENDING, WAITING, DISPATCHED, DONE, FAILED or CANCELLED.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Most tasks to show.")] = _ROWS,
    as_json: AsJson = False,
) -> None:
    """List tasks, the newest first."""
    from mloc_prefect.cli.client.tables import TASK_HEAD, table_lines, task_row

    with _endpoint() as endpoint:
        wanted = status.upper() if status else None
        found = endpoint.get("/api/v1/tasks", status=wanted, limit=limit, newest_first="true")
    if as_json:
        _print(found)
        return
    for line in table_lines(TASK_HEAD, [task_row(record) for record in found]) or ["no tasks"]:
        print(line)


def cancel(
    wanted: Id,
    *,
    submission: Annotated[
        bool, typer.Option("--submission", help="End all tasks that were submitted with it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Cancel a task and what depends on it. The id of a submission cancels all of its tasks."""
    from mloc_prefect.cli.client.endpoint import quoted
    from mloc_prefect.cli.client.finding import find_tasks, short

    with _endpoint() as endpoint:
        records = find_tasks(endpoint, wanted)
        whole = submission or len(records) > 1
        path = f"/api/v1/tasks/{quoted(records[0]['task_id'])}/cancel"
        answer = endpoint.post(path, params={"submission": "true"} if whole else None)
    if as_json:
        _print(answer)
        return
    for key, words in (("cancelled", "cancelled"), ("stopping", "told to stop")):
        for task_id in answer.get(key, []):
            print(f"{words}: {short(task_id)}")
    if not answer.get("cancelled") and not answer.get("stopping"):
        print("nothing left to cancel")


def workers(*, as_json: AsJson = False) -> None:
    """List the workers, what they hold, have loaded and run.

    Asks the endpoint; where none is configured and none answers, the Prefect server of PREFECT_API_URL.
    """
    from mloc_prefect.cli.client.tables import WORKER_HEAD, table_lines, worker_row
    from mloc_prefect.cli.client.workers import find_workers

    found = find_workers()
    if as_json:
        _print(found)
        return
    rows = [worker_row(worker) for worker in sorted(found, key=lambda one: str(one["worker_id"]))]
    for line in table_lines(WORKER_HEAD, rows) or ["no workers"]:
        print(line)


def _endpoint() -> Endpoint:
    from mloc_prefect.cli.client.endpoint import Endpoint
    from mloc_prefect.settings import get_settings

    return Endpoint.configured(get_settings())


def _show_submission(endpoint: Endpoint, answer: dict[str, Any]) -> None:
    from mloc_prefect.cli.client.finding import label
    from mloc_prefect.cli.client.tables import table_lines

    names: dict[str, str] = {}
    for task in answer["tasks"]:
        record = endpoint.find(f"/api/v1/tasks/{task['task_id']}")
        names[task["task_id"]] = label(record) if record else ""
    rows = [[task["task_id"], names[task["task_id"]], task["status"]] for task in answer["tasks"]]
    if answer.get("submission_id"):
        print(f"submission {answer['submission_id']}")
    for line in table_lines((), rows):
        print(line)


def _print(value: dict[str, Any] | Sequence[Any]) -> None:
    """Print JSON; ASCII, so that no locale can break it."""
    sys.stdout.write(json.dumps(value, separators=(", ", ": ")) + "\n")


def results(
    wanted: Id,
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Save the result and the files that the task left there."),
    ] = None,
) -> None:
    """Print the result of a task as JSON, or save it with the files that the task left.

    Sizes and SHA-256 of files are checked. What was only uploaded later is fetched by its name, with curl.
    """
    from mloc_prefect.cli.client.fetching import save
    from mloc_prefect.cli.client.finding import find_tasks, label

    with _endpoint() as endpoint:
        records = find_tasks(endpoint, wanted)
        if output is None:
            found = {label(record): _result(endpoint, record) for record in records}
            _print(found if len(records) > 1 else next(iter(found.values())))
            return
        for saved in save(endpoint, records, output):
            print(saved)


def _result(endpoint: Endpoint, record: dict[str, Any]) -> Any:
    from mloc_prefect.cli.client.endpoint import quoted
    from mloc_prefect.cli.client.finding import label
    from mloc_prefect.errors import UsageError

    result = endpoint.find(f"/api/v1/results/{quoted(record['task_id'])}")
    if result is None:
        reason = f": {record['error']}" if record.get("error") else ""
        raise UsageError(f"task {label(record)} has no result; it is {record['status']}{reason}")
    return result


def watch(wanted: Id) -> None:
    """Show tasks until they have ended. Exit: 0 all DONE, 5 one failed or was cancelled; Ctrl-C leaves them running."""
    from mloc_prefect.cli.client.finding import find_tasks
    from mloc_prefect.cli.client.watching import watch_tasks

    with _endpoint() as endpoint:
        ids = [record["task_id"] for record in find_tasks(endpoint, wanted)]
        raise typer.Exit(watch_tasks(endpoint, ids, stream=sys.stdout))


def logs(
    wanted: Id,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the task has ended.")] = False,
) -> None:
    """Print what a task has said."""
    from mloc_prefect.cli.client.finding import find_task
    from mloc_prefect.cli.client.tailing import log_lines

    with _endpoint() as endpoint:
        record = find_task(endpoint, wanted)
        for line in log_lines(endpoint, record["task_id"], follow=follow):
            print(line, flush=follow)


WATCH_EXAMPLES = examples("mloc watch 5d1e7c2a")
LOGS_EXAMPLES = examples("mloc logs 5d1e7c2a", "mloc logs 5d1e7c2a -f")
RESULTS_EXAMPLES = examples("mloc results 5d1e7c2a", "mloc results 5d1e7c2a -o out")
