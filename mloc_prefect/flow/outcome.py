"""The outcome of a stage and of a whole workflow; status names are MLOC's (protocol 2.2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mloc_prefect.artifacts.task_result import TaskResult
from mloc_prefect.errors import ExecutionError, ExecutionFailure

if TYPE_CHECKING:
    from collections.abc import Mapping

Status = Literal["DONE", "FAILED", "CANCELLED"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOutcome:
    """The end of one stage.

    Attributes:
        key: Key of the stage in its plan.
        node: Stage or node name; None for a single task.
        task_id: Id of the task.
        status: `DONE`, `FAILED` or `CANCELLED`.
        result_path: Absolute path of `responses.json`, or None.
        error: Message for the user, or None.
        summary: Small facts: model, rows, usage, engine and why.
        reused: The stage was finished before and did not run again.
        blamed: If it never ran: the stages because of which.
    """

    key: str
    node: str | None
    task_id: str
    status: Status
    result_path: str | None = None
    error: str | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    reused: bool = False
    blamed: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the stage is DONE."""
        return self.status == "DONE"

    @property
    def result(self) -> TaskResult:
        """The result: rows, tables, metrics and files. It is read anew each time, so keep it in a variable.

        Raises:
            ExecutionError: The stage is not DONE.
            ArtifactError: The file is not on this machine, or cannot be read.
        """
        if self.status != "DONE" or self.result_path is None:
            why = f": {_first_line(self.error)}" if self.error else ""
            raise ExecutionError(f"stage {self.key!r} has no result: it is {self.status}{why}", retryable=False)
        return TaskResult.read(Path(self.result_path))

    def to_dict(self) -> dict[str, Any]:
        """Return the row that `mloc run --json` prints."""
        return {
            "node": self.node,
            "task_id": self.task_id,
            "status": self.status,
            "result_path": self.result_path,
            "error": self.error,
        }


@dataclass(
    frozen=True, slots=True, kw_only=True, weakref_slot=True
)  # Prefect follows by reference what a task is given
class WorkflowOutcome:
    """The end of a workflow.

    Attributes:
        ok: All stages are DONE.
        flow_run_id: Id of the workflow run.
        name: Name of the workflow.
        tasks: One outcome for each stage, in plan order.
    """

    ok: bool
    flow_run_id: str
    name: str
    tasks: tuple[StageOutcome, ...]

    def task(self, key: str) -> StageOutcome:
        """Return the outcome of a stage, or of the task of a spec without stages by its `metadata.name`.

        Raises:
            KeyError: There is none.
        """
        for task in self.tasks:
            if task.key == key:
                return task
        raise KeyError(key)

    def to_dict(self) -> dict[str, Any]:
        """Return the object that `mloc run --json` prints."""
        return {"ok": self.ok, "flow_run_id": self.flow_run_id, "tasks": [t.to_dict() for t in self.tasks]}

    @property
    def message(self) -> str:
        """One sentence about the run: what failed, what did not run."""
        failed = [t for t in self.tasks if t.status == "FAILED" and not t.blamed]
        idle = [t for t in self.tasks if t.blamed]
        cancelled = [t for t in self.tasks if t.status == "CANCELLED" and not t.blamed]
        parts = [f"stage {t.key!r} failed: {_first_line(t.error)}" for t in failed]
        parts += [f"stage {t.key!r} was cancelled" for t in cancelled]
        if idle:
            parts.append("not run: " + ", ".join(repr(t.key) for t in idle))
        return "; ".join(parts) or f"all {len(self.tasks)} stages done"


def blame(ends: Mapping[str, Status]) -> str:
    """Return why a stage did not run.

    Args:
        ends: Status of each stage that kept it from running, by key.
    """
    return ", ".join(f"stage {key!r} {'failed' if end == 'FAILED' else 'was cancelled'}" for key, end in ends.items())


def cancelled_error() -> ExecutionError:
    """Return the error of an attempt that was cancelled where it ran or waited."""
    return ExecutionError("cancelled", retryable=False, failure=ExecutionFailure("cancelled", kind="cancelled"))


def was_cancelled(error: BaseException | None) -> bool:
    """Return whether `error` is the cancellation of an attempt where it ran or waited, which is no failure."""
    return isinstance(error, ExecutionError) and error.failure is not None and error.failure.kind == "cancelled"


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n", 1)[0]
