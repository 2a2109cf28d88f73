"""The files of an agent task: answers, traces and the summary of a batch [protocol 5]."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts import atomic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.executors.agent.item_steps import ItemSteps

OUTPUT, BATCH, SUMMARY, TRACE = "agent_output.txt", "batch_logs", "batch_summary.json", "agent_trace.md"
_FENCES = {"call": "json", "result": ""}


class AgentFiles:
    """Writes the files of one task.

    Args:
        task_dir: Directory of the task.
        single: Whether the task has one item only.
    """

    def __init__(self, task_dir: Path, *, single: bool) -> None:
        self._folder = task_dir
        self._single = single

    def write_item(self, index: int, task: str, output: str, error: str | None, steps: ItemSteps) -> None:
        """Write answer and trace of an item that has ended; numbers in names count from 1."""
        number = index + 1
        answer = self._folder / (OUTPUT if self._single else f"{BATCH}/task_{number}_output.txt")
        trace = self._folder / (TRACE if self._single else f"{BATCH}/task_{number}_trace.md")
        answer.parent.mkdir(parents=True, exist_ok=True)
        text = output if error is None else f"failed: {error}\n"
        atomic.write_bytes(answer, text.encode("utf-8", "backslashreplace"))
        shown = trace_text(number, task, text, steps)
        atomic.write_bytes(trace, shown.encode("utf-8", "backslashreplace"))

    def write_summary(self, summary: dict[str, int]) -> None:
        """Write the summary of a batch."""
        if not self._single:
            atomic.write_json(self._folder / SUMMARY, summary)

    @property
    def log(self) -> str:
        """What the result names as log: a file or folder of the task."""
        return OUTPUT if self._single else BATCH


def trace_text(number: int, task: str, ending: str, steps: ItemSteps) -> str:
    """Return the steps of an item as Markdown."""
    counts = f"{steps.requests} requests to the model, {steps.calls} calls of tools"
    tokens = f"{steps.prompt_tokens} tokens read, {steps.completion_tokens} written"
    again = f"; {steps.replayed} steps were done by an earlier attempt" if steps.replayed else ""
    lines = [f"# Task {number}", "", *_quoted(task, ""), "", f"{counts}; {tokens}{again}.", ""]
    for position, (kind, title, text) in enumerate(steps.trace, 1):
        lines += [f"## {position}. {title}", "", *_quoted(text, _FENCES.get(kind, "")), ""]
    return "\n".join([*lines, "## End", "", *_quoted(ending, ""), ""])


def _quoted(text: str, language: str) -> Sequence[str]:
    """Return text as a block of code, which no Markdown in it can end."""
    longest = run = 0
    for character in text:
        run = run + 1 if character == "`" else 0
        longest = max(longest, run)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", text.rstrip("\n"), fence]


def batch_summary(completed: int, failed: int) -> dict[str, Any]:
    """Return the counts of a batch."""
    return {"total_tasks": completed + failed, "completed": completed, "failed": failed}
