"""`mloc watch`: tasks of an endpoint in the display of `mloc run`, until they have ended."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mloc_prefect.cli.boundary import EXIT_INTERRUPTED
from mloc_prefect.cli.client.endpoint import quoted
from mloc_prefect.cli.client.finding import label, short
from mloc_prefect.cli.display import choose
from mloc_prefect.cli.progress import StageView, one_line
from mloc_prefect.errors import DispatchError, ExecutionError
from mloc_prefect.execution.meter import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TextIO

    from mloc_prefect.cli.client.endpoint import Endpoint
    from mloc_prefect.cli.display import LiveDisplay, PlainDisplay

ENDS = {"DONE", "FAILED", "CANCELLED"}

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 2.0
_PATIENCE = 120.0  # seconds without an endpoint before giving up


def watch_tasks(
    endpoint: Endpoint, task_ids: Sequence[str], *, stream: TextIO, sleep: Callable[[float], None] = time.sleep
) -> int:
    """Show tasks until all have ended; returns the exit code.

    Args:
        endpoint: Where they are.
        task_ids: Which.
        stream: Where to draw.
        sleep: Waits so many seconds.

    Raises:
        DispatchError: The endpoint is away for two minutes.
    """
    display = choose(stream)
    records: dict[str, dict[str, Any]] = {}
    try:
        with display.showing():
            _follow(endpoint, task_ids, records, display, sleep)
    except KeyboardInterrupt:
        open_ones = [task_id for task_id in task_ids if records.get(task_id, {}).get("status") not in ENDS]
        _show_reasons(records)
        display.say(f"not watching any more; {len(open_ones)} of {len(task_ids)} tasks go on")
        return EXIT_INTERRUPTED
    return _close(display, records)


def _follow(
    endpoint: Endpoint,
    task_ids: Sequence[str],
    records: dict[str, dict[str, Any]],
    display: LiveDisplay | PlainDisplay,
    sleep: Callable[[float], None],
) -> None:
    pause, away = _FIRST_PAUSE, 0.0
    while True:
        try:
            for task_id in task_ids:
                if records.get(task_id, {}).get("status") not in ENDS:
                    records[task_id] = endpoint.get(f"/api/v1/tasks/{quoted(task_id)}")
                    _update(display, records[task_id])
        except DispatchError as error:  # it may be restarted: what was accepted is kept
            if away >= _PATIENCE:
                raise
            if away == 0:
                display.say(f"{error.message}; trying again")
            away += pause
        else:
            away = 0.0
            if all(records[task_id]["status"] in ENDS for task_id in task_ids):
                return
        sleep(pause)
        pause = min(pause * 1.3, _LONGEST_PAUSE)


def _update(display: LiveDisplay | PlainDisplay, record: dict[str, Any]) -> None:
    """Bring the line of a task up to date and say what has changed."""
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
        if record.get("started_ts") and record.get("finished_ts"):  # it may have begun before the first look
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
    """Print why tasks wait or ended badly, whole: a table has room for a part of the first line."""
    from mloc_prefect.cli.console import labelled, stderr

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
