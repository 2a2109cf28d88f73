"""Defines `RunObserver`, which displays, the bridge and tests implement to follow a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.execution.protocol import ExecutionEvent
    from mloc_prefect.flow.outcome import StageOutcome
    from mloc_prefect.plan.workflow_plan import WorkflowPlan


class RunObserver(Protocol):
    """Follows a run: called on its event loop, in order; must return quickly and not raise."""

    def run_started(self, flow_run_id: str, plan: WorkflowPlan, task_ids: Mapping[str, str]) -> None:
        """The workflow run is Running; `task_ids` by stage key."""

    def stage_started(self, key: str, attempt: int) -> None:
        """Attempt `attempt` begins, counted from 1."""

    def stage_event(self, key: str, event: ExecutionEvent) -> None:
        """An event of the executor, or before that `waiting` and `placed` of the dispatcher."""

    def stage_retry(self, key: str, attempt: int, error: str, delay: float) -> None:
        """Attempt `attempt` failed; the next one starts in `delay` seconds."""

    def stage_ended(self, key: str, outcome: StageOutcome) -> None:
        """The stage is DONE, FAILED or CANCELLED."""


class NullObserver:
    """An observer that does nothing."""

    def run_started(self, flow_run_id: str, plan: WorkflowPlan, task_ids: Mapping[str, str]) -> None:
        """See `RunObserver`."""

    def stage_started(self, key: str, attempt: int) -> None:
        """See `RunObserver`."""

    def stage_event(self, key: str, event: ExecutionEvent) -> None:
        """See `RunObserver`."""

    def stage_retry(self, key: str, attempt: int, error: str, delay: float) -> None:
        """See `RunObserver`."""

    def stage_ended(self, key: str, outcome: StageOutcome) -> None:
        """See `RunObserver`."""
