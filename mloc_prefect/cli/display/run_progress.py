"""The state of a running workflow, collected by one observer and read by every display."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mloc_prefect.execution.host.progress_meter import ProgressMeter, phase_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mloc_prefect.execution.protocol import ExecutionEvent
    from mloc_prefect.flow.outcome import StageOutcome
    from mloc_prefect.plan.workflow_plan import WorkflowPlan


@dataclass(slots=True)
class StageView:
    """One line of the stage table.

    Attributes:
        key: Key of the stage in the plan.
        task_type: `spec.taskType`.
        node: Stage or node name; None for a single task.
        state: `PENDING`, `RUNNING`, `WAITING`, then MLOC's `DONE`, `FAILED` or `CANCELLED`.
        attempt: Attempt now running, from 1; 0 before the first.
        meter: Rows and tokens of this attempt.
        note: Phase, reason to wait, or error.
        started: Clock at the start of the first attempt, or None.
        ended: Clock at the end, or None.
        outcome: Outcome of the stage, or None.
    """

    key: str
    task_type: str
    node: str | None = None
    state: str = "PENDING"
    attempt: int = 0
    meter: ProgressMeter = field(default_factory=ProgressMeter)
    note: str = ""
    started: float | None = None
    ended: float | None = None
    outcome: StageOutcome | None = None

    def elapsed(self, now: float) -> float:
        """Return the seconds since the stage started; 0 before that."""
        return 0.0 if self.started is None else (self.ended or now) - self.started


class RunProgress:
    """A `RunObserver` that turns events into stage views and then calls `changed(key, what)`.

    Args:
        changed: Called after each change with the key of the stage and one of `run`, `started`, `waiting`, `placed`,
            `progress`, `phase`, `log`, `retry`, `ended`.
        clock: Returns monotonic seconds.
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
        """Create the stage views. Time counts from here, not from the start of servers."""
        self.began = self.clock()
        self.flow_run_id, self.name, self.task_ids = flow_run_id, plan.name, dict(task_ids)
        self.stages = {stage.key: StageView(stage.key, stage.task_type, stage.node) for stage in plan.stages}
        self.changed(None, "run")
        self.announce(flow_run_id)

    def stage_started(self, key: str, attempt: int) -> None:
        """Begin an attempt: counts are reset, the time is not."""
        view = self.stages[key]
        view.state, view.attempt, view.note, view.meter = "RUNNING", attempt, "", ProgressMeter()
        view.started = self.clock() if view.started is None else view.started
        self.changed(key, "started")

    def stage_event(self, key: str, event: ExecutionEvent) -> None:
        """Apply an event of the executor."""
        view, data = self.stages[key], event.data
        if event.kind == "progress":
            view.meter.take(data, self.clock())
            view.note = ""
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
        """Note a failed attempt that is retried after `delay` seconds."""
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


def one_line(text: object) -> str:
    """Return the first line of a message."""
    return next(iter(str(text).strip().splitlines()), "")


def _nothing(_flow_run_id: str) -> None:
    return
