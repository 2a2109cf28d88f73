"""What is known about a running workflow, kept by one observer that every display reads."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mloc_prefect.execution.protocol import ExecutionEvent
    from mloc_prefect.orchestrate.outcome import StageOutcome
    from mloc_prefect.plan.model import WorkflowPlan

_ETA_FROM = 0.05  # share of the rows that must be done before a guess is worth showing


@dataclass(slots=True)
class StageView:
    """One line of the stage table.

    Attributes:
        key: Key of the stage in the plan.
        task_type: `spec.taskType`.
        node: Stage or node name; None for a single task.
        state: `PENDING`, `RUNNING`, `WAITING`, then MLOC's `DONE`, `FAILED` or `CANCELLED`.
        attempt: Attempt now running, from 1; 0 before the first.
        done: Rows finished.
        total: Rows in all; 0 while unknown.
        tokens: Tokens generated in this attempt.
        note: Phase, wait or error in words.
        started: Clock when the first attempt began, or None.
        ended: Clock at the end, or None.
        outcome: What the stage left behind, or None.
    """

    key: str
    task_type: str
    node: str | None = None
    state: str = "PENDING"
    attempt: int = 0
    done: int = 0
    total: int = 0
    tokens: int = 0
    note: str = ""
    started: float | None = None
    ended: float | None = None
    outcome: StageOutcome | None = None
    first_progress: tuple[float, int, int] | None = field(default=None, repr=False)  # clock, rows, tokens

    def elapsed(self, now: float) -> float:
        """Return the seconds since the stage started; 0 before that."""
        return 0.0 if self.started is None else (self.ended or now) - self.started

    def tokens_per_second(self, now: float) -> float | None:
        """Return the rate since the first row of this attempt, or None while there is none."""
        if self.first_progress is None or self.state != "RUNNING":
            return None
        began, _, tokens = self.first_progress
        spent = now - began
        return (self.tokens - tokens) / spent if spent > 0 and self.tokens > tokens else None

    def eta(self, now: float) -> float | None:
        """Return the expected seconds until the last row, from 5 % on; rows of earlier attempts do not count."""
        if self.first_progress is None or self.state != "RUNNING" or not self.total:
            return None
        began, first, _ = self.first_progress
        fresh = self.done - first
        if fresh <= 0 or self.done < _ETA_FROM * self.total:
            return None
        return (now - began) / fresh * (self.total - self.done)


class RunProgress:
    """A `RunObserver` that turns events into stage views and then calls `changed(key, what)`.

    Args:
        changed: Called after each change with the stage's key and one of `run`, `started`, `waiting`, `placed`,
            `progress`, `phase`, `log`, `retry`, `ended`.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        changed: Callable[[str | None, str], None] = lambda _key, _what: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.changed = changed
        self.clock = clock
        self.began = clock()
        self.flow_run_id: str | None = None
        self.name = ""
        self.task_ids: dict[str, str] = {}
        self.stages: dict[str, StageView] = {}
        self.log = ""
        self.announce: Callable[[str], None] = _nothing

    def run_started(self, flow_run_id: str, plan: WorkflowPlan, task_ids: Mapping[str, str]) -> None:
        """Take over the stages of the plan; time counts from here, not from the start of servers."""
        self.began = self.clock()
        self.flow_run_id, self.name, self.task_ids = flow_run_id, plan.name, dict(task_ids)
        self.stages = {stage.key: StageView(stage.key, stage.task_type, stage.node) for stage in plan.stages}
        self.changed(None, "run")
        self.announce(flow_run_id)

    def stage_started(self, key: str, attempt: int) -> None:
        """Begin an attempt: counts start again, the time does not."""
        view = self.stages[key]
        view.state, view.attempt, view.note, view.first_progress = "RUNNING", attempt, "", None
        view.started = self.clock() if view.started is None else view.started
        self.changed(key, "started")

    def stage_event(self, key: str, event: ExecutionEvent) -> None:
        """Take in what the executor says."""
        view, data = self.stages[key], event.data
        if event.kind == "progress":
            _count(view, data, self.clock())
        elif event.kind == "phase":
            view.note = phase_text(data)
        elif event.kind == "waiting":
            view.state, view.note = "WAITING", one_line(data.get("reason", ""))
        elif event.kind == "placed":
            view.state, view.note = "RUNNING", ""
        elif event.kind == "log":
            self.log = str(data.get("message", ""))
        self.changed(key, event.kind)

    def stage_retry(self, key: str, attempt: int, error: str, delay: float) -> None:
        """Note a failed attempt that gets another one after `delay` seconds."""
        view = self.stages[key]
        view.state, view.note = "WAITING", f"attempt {attempt} failed, next in {delay:.0f} s: {one_line(error)}"
        self.changed(key, "retry")

    def stage_ended(self, key: str, outcome: StageOutcome) -> None:
        """Keep the outcome."""
        view = self.stages[key]
        view.state, view.outcome, view.ended = outcome.status, outcome, self.clock()
        reason = one_line(outcome.error or "")
        view.note = "reused" if outcome.reused else "" if reason == outcome.status.lower() else reason
        self.changed(key, "ended")


def phase_text(data: Mapping[str, Any]) -> str:
    """Return `loading weights 40 %` for a phase event."""
    fraction = data.get("fraction")
    text = str(data.get("text", ""))
    return f"{text} {float(fraction) * 100:.0f} %" if isinstance(fraction, int | float) else text


def one_line(text: object) -> str:
    """Return the first line of a message."""
    return next(iter(str(text).strip().splitlines()), "")


def duration(seconds: float) -> str:
    """Return `0.4 s`, `12 s`, `3:05` or `1:02:03`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def rate_text(rate: float) -> str:
    """Return a rate with one decimal below ten."""
    return f"{rate:.1f}" if rate < 10 else f"{rate:.0f}"


def _nothing(_flow_run_id: str) -> None:
    return


def _count(view: StageView, data: Mapping[str, Any], now: float) -> None:
    view.done, view.total = int(data.get("done") or 0), int(data.get("total") or 0)
    view.tokens = int(data.get("tokens_out") or view.tokens)
    view.note = ""
    if view.first_progress is None:
        view.first_progress = (now, view.done, int(data.get("tokens_out") or 0))
