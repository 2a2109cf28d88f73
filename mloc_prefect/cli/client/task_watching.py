"""Shows tasks of an endpoint in the display of `mloc run` until they have ended (`mloc watch`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.cli.display.run_display import choose
from mloc_prefect.cli.display.run_progress import StageView, one_line
from mloc_prefect.cli.error_boundary import EXIT_INTERRUPTED
from mloc_prefect.client.client_calls import ENDS
from mloc_prefect.client.task_lookup import label, short
from mloc_prefect.errors import ExecutionError
from mloc_prefect.execution.host.progress_meter import duration

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from mloc_prefect.cli.display.run_display import LiveDisplay, PlainDisplay
    from mloc_prefect.client.sync_client import MlocClient


def watch_tasks(endpoint: MlocClient, task_ids: Sequence[str], *, stream: TextIO) -> int:
    """Show tasks until all have ended; return the exit code.

    Args:
        endpoint: The endpoint.
        task_ids: Ids of the tasks.
        stream: The stream to draw on.

    Raises:
        DispatchError: The endpoint was unreachable for two minutes.
    """
    display = choose(stream)
    records: dict[str, dict[str, Any]] = {}
    try:
        with display.showing():
            for record in endpoint.watch(task_ids, on_outage=lambda text: display.say(f"{text}; retrying")):
                records[record["task_id"]] = record
                _update(display, record)
    except KeyboardInterrupt:
        unfinished = [task_id for task_id in task_ids if records.get(task_id, {}).get("status") not in ENDS]
        _show_reasons(records)
        display.say(f"stopped watching; {len(unfinished)} of {len(task_ids)} tasks continue")
        return EXIT_INTERRUPTED
    return _close(display, records)


def _update(display: LiveDisplay | PlainDisplay, record: dict[str, Any]) -> None:
    """Update the line of a task and report what has changed."""
    progress = display.progress
    key = _name(record)
    view = progress.stages.setdefault(key, StageView(key, str(record.get("task_type") or "")))
    state, attempt = _state(record), int(record.get("attempts") or 0)
    text = one_line(record.get("error") or "") if state != "RUNNING" else str(record.get("assigned_worker") or "")
    if (view.state, view.attempt, view.note) == (state, attempt, text):
        return
    before = view.state
    view.state, view.attempt, view.note = state, attempt, text
    if state == "RUNNING":
        view.started = progress.clock() if view.started is None else view.started
        progress.changed(key, "started")
    elif state in ENDS and before not in ENDS:
        view.ended = progress.clock()
        if record.get("started_ts") and record.get("finished_ts"):  # it may have started before the first request
            view.started = view.ended - (record["finished_ts"] - record["started_ts"])
        progress.changed(key, "ended")
    elif text:
        progress.changed(key, "retry")


def _state(record: dict[str, Any]) -> str:
    state = str(record["status"])
    return "RUNNING" if state == "DISPATCHED" else state


def _name(record: dict[str, Any]) -> str:
    return f"{label(record)} {short(record['task_id'])}"


def _show_reasons(records: dict[str, dict[str, Any]]) -> None:
    """Print in full why tasks wait or failed; the table has room for part of the first line only."""
    from mloc_prefect.cli.display.console import labelled, stderr

    for record in records.values():
        error, state = str(record.get("error") or "").strip(), str(record["status"])
        if not error or state in {"DONE", "DISPATCHED"} or error.lower() == state.lower():
            continue
        word, style = ("error", "bold red") if state == "FAILED" else (state.lower(), "yellow")
        stderr().print(labelled(word, f"{_name(record)}: {error}", style))


def _close(display: LiveDisplay | PlainDisplay, records: dict[str, dict[str, Any]]) -> int:
    _show_reasons(records)
    states = [record["status"] for record in records.values()]
    done = states.count("DONE")
    took = duration(display.progress.clock() - display.progress.began)
    display.say(f"{'done' if done == len(states) else 'failed'}: {done} of {len(states)} tasks in {took}")
    return 0 if done == len(states) else ExecutionError.exit_code
