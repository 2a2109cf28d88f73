"""`mloc submit`, `status`, `list`, `watch`, `logs`, `results`, `cancel` and `workers`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mloc_prefect.cli.commands.check import Overrides, Parameters, parameters
from mloc_prefect.cli.display.console import print_json, say
from mloc_prefect.cli.error_boundary import EXIT_SPEC, examples
from mloc_prefect.urls import local_path

if TYPE_CHECKING:
    from mloc_prefect.client.sync_client import MlocClient

SUBMIT_EXAMPLES = examples(
    "mloc submit task.yaml",
    "mloc submit task.yaml --watch",
    "mloc submit task.yaml --set spec.inference.max_tokens=32 --json",
)
STATUS_EXAMPLES = examples("mloc status 5d1e7c2a    # a task or a submission; the first characters are enough")
LIST_EXAMPLES = examples("mloc list", "mloc list --status FAILED --limit 50", "mloc list --json")
WATCH_EXAMPLES = examples("mloc watch 5d1e7c2a")
LOGS_EXAMPLES = examples("mloc logs 5d1e7c2a", "mloc logs 5d1e7c2a -f")
RESULTS_EXAMPLES = examples("mloc results 5d1e7c2a", "mloc results 5d1e7c2a -o out")
CANCEL_EXAMPLES = examples(
    "mloc cancel 5d1e7c2a", "mloc cancel 5d1e7c2a --submission    # everything that was submitted with it"
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
    """Submit a spec to the endpoint of MLOC_URL (default: the `mloc up` of this machine).

    The spec is checked locally first. Exit codes with --watch: 0 all tasks are DONE, 5 one failed or was cancelled.
    """
    from mloc_prefect.cli.client.spec_upload import checked_spec
    from mloc_prefect.cli.client.task_watching import watch_tasks

    order = checked_spec(file, tuple(overrides or ()), parameters(param or []), strict=strict)
    if order is None:
        raise typer.Exit(EXIT_SPEC)
    with _endpoint() as endpoint:
        answer = endpoint.submit(order.text, parameters=order.parameters, strict=strict)
        if as_json:
            print_json(answer)
        else:
            _show_submission(endpoint, answer)
        if watch:
            ids = [task["task_id"] for task in answer["tasks"]]
            raise typer.Exit(watch_tasks(endpoint, ids, stream=sys.stderr if as_json else sys.stdout))


def status(wanted: Id, *, as_json: AsJson = False) -> None:
    """Show a task, or all tasks of a submission."""
    from mloc_prefect.cli.client.record_tables import record_lines

    with _endpoint() as endpoint:
        records = endpoint.status(wanted)
    if as_json:
        print_json(records if len(records) > 1 else records[0])
        return
    say("\n\n".join("\n".join(record_lines(record)) for record in records))


def list_tasks(
    *,
    status: Annotated[
        str | None,
        typer.Option(
            metavar="STATE",
            help="Show only tasks in this state: PENDING, WAITING, DISPATCHED, DONE, FAILED or CANCELLED.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Maximum number of tasks.")] = _ROWS,
    as_json: AsJson = False,
) -> None:
    """List tasks, newest first."""
    from mloc_prefect.cli.client.record_tables import TASK_HEAD, table_lines, task_row

    with _endpoint() as endpoint:
        found = endpoint.list_tasks(status=status.upper() if status else None, limit=limit, newest_first=True)
    if as_json:
        print_json(found)
        return
    for line in table_lines(TASK_HEAD, [task_row(record) for record in found]) or ["no tasks"]:
        say(line)


def cancel(
    wanted: Id,
    *,
    submission: Annotated[
        bool, typer.Option("--submission", help="Cancel all tasks that were submitted with it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Cancel a task and the tasks that depend on it. The id of a submission cancels all its tasks."""
    from mloc_prefect.client.task_lookup import short

    with _endpoint() as endpoint:
        answer = endpoint.cancel(wanted, submission=submission)
    if as_json:
        print_json(answer)
        return
    for key in ("cancelled", "stopping"):
        for task_id in answer.get(key, []):
            say(f"{key}: {short(task_id)}")
    if not answer.get("cancelled") and not answer.get("stopping"):
        say("nothing left to cancel")


def workers(*, as_json: AsJson = False) -> None:
    """List the workers with their hardware, leases, warm models and runs.

    Asks the endpoint. If none is configured and none answers, asks the Prefect server of PREFECT_API_URL.
    """
    from mloc_prefect.cli.client.record_tables import WORKER_HEAD, table_lines, worker_row
    from mloc_prefect.cli.client.worker_lookup import find_workers

    found = find_workers()
    if as_json:
        print_json(found)
        return
    rows = [worker_row(worker) for worker in sorted(found, key=lambda one: str(one["worker_id"]))]
    for line in table_lines(WORKER_HEAD, rows) or ["no workers"]:
        say(line)


def _endpoint() -> MlocClient:
    from mloc_prefect.client.sync_client import MlocClient

    return MlocClient.configured()


def _show_submission(endpoint: MlocClient, answer: dict[str, Any]) -> None:
    from mloc_prefect.cli.client.record_tables import table_lines
    from mloc_prefect.client.task_lookup import label

    names = {task["task_id"]: label(endpoint.task(task["task_id"])) for task in answer["tasks"]}
    rows = [[task["task_id"], names[task["task_id"]], task["status"]] for task in answer["tasks"]]
    if answer.get("submission_id"):
        say(f"submission {answer['submission_id']}")
    for line in table_lines((), rows):
        say(line)


def results(
    wanted: Id,
    *,
    output: Annotated[
        str | None,  # pathlib would make a path of a URL
        typer.Option("--output", "-o", metavar="DIR", help="Save the result and the files of the task to DIR."),
    ] = None,
) -> None:
    """Print the result of a task as JSON, or save it with the files of the task.

    Sizes and SHA-256 of files are checked. Files that were uploaded later are not listed: download them with curl.
    """
    from mloc_prefect.client.task_lookup import label
    from mloc_prefect.errors import UsageError

    folder = local_path(output) if output is not None else None
    if output is not None and folder is None:
        raise UsageError(f"--output {output!r} is a URL, not a folder of this machine", hint="name a local folder")
    with _endpoint() as endpoint:
        if folder is None:
            records = endpoint.status(wanted)
            found = {label(record): endpoint.result(record["task_id"]).document for record in records}
            print_json(found if len(records) > 1 else next(iter(found.values())))
            return
        for saved in endpoint.download(wanted, Path(folder)):
            say(saved)


def watch(wanted: Id) -> None:
    """Show tasks until they have ended; Ctrl-C leaves them running.

    Exit codes: 0 all tasks are DONE, 5 one failed or was cancelled.
    """
    from mloc_prefect.cli.client.task_watching import watch_tasks

    with _endpoint() as endpoint:
        ids = [record["task_id"] for record in endpoint.status(wanted)]
        raise typer.Exit(watch_tasks(endpoint, ids, stream=sys.stdout))


def logs(
    wanted: Id,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow the log until the task has ended.")] = False,
) -> None:
    """Print the log of a task."""
    with _endpoint() as endpoint:
        for line in endpoint.logs(wanted, follow=follow):
            say(line, flush=follow)
