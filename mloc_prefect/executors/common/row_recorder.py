"""`RowRecorder`: journal, failures and counts of the rows of one attempt, the same for every engine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.inference_task import too_many
from mloc_prefect.executors.common.tokenizing import LIVE_SECONDS, read_rows

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.executors.common.inference_task import InferenceTask
    from mloc_prefect.executors.common.rendering import PendingRow, PromptRenderer


class RowRecorder:
    """The rows of one attempt: which have ended, and how.

    Args:
        task: The inference task.
        context: Receives rows and events.

    Attributes:
        ended: Indices of the rows that need no more work.
        retry_may_help: Whether a row failed for a reason that another attempt may not meet.
    """

    def __init__(self, task: InferenceTask, context: ExecutionContext) -> None:
        self._task = task
        self._context = context
        self._failures: dict[int, str] = {}
        self._chat_texts: dict[int, str] = {}
        self._reported = time.monotonic()
        self.ended: set[int] = set()
        self.retry_may_help = False

    def tokenize(self, finished: Collection[int], reader: PromptRenderer, limit: int) -> Sequence[PendingRow]:
        """Return the rows to compute, longest first; rows that cannot be tokenized are recorded as failed.

        Args:
            finished: Rows that need no more work.
            reader: Tokenizer and window of the model.
            limit: Largest number of tokens of an answer.

        Raises:
            Cancelled: The task was cancelled.
        """
        self.ended.update(finished)
        rows, self._chat_texts = read_rows(
            self._task.prompts,
            finished,
            style=self._task.style,
            reader=reader,
            limit=limit,
            context=self._context,
            on_bad=self.add_failure,
        )
        return rows

    def add_answer(
        self, index: int, text: str, finish_reason: str | None, *, read: int, written: int, **extra: Any
    ) -> None:
        """Record an answer with its counts of prompt (`read`) and generated (`written`) tokens."""
        chat = {"rendered_prompt": self._chat_texts.pop(index)} if index in self._chat_texts else {}
        self._context.rows.append(
            index,
            self._task.keys[index],
            output=text,
            finish_reason=finish_reason,
            usage={"prompt_tokens": read, "completion_tokens": written},
            **chat,
            **extra,
        )
        self.ended.add(index)

    def add_failure(self, index: int, problem: str) -> None:
        """Record a row that cannot be processed; the others continue."""
        self._context.rows.append(index, self._task.keys[index], output="", error=problem)
        self._context.log(f"row {self._task.prompts.first + index}: {problem}", "warning")
        self._failures[index] = problem
        self.ended.add(index)

    @property
    def report_due(self) -> bool:
        """Whether the last progress report is so old that the task could be taken for stalled."""
        return time.monotonic() - self._reported >= LIVE_SECONDS

    def report(self, **counts: float) -> None:
        """Report how many rows have ended, with counts of tokens."""
        self._reported = time.monotonic()
        self._context.progress(len(self.ended), len(self._task.prompts), **counts)

    def check_failures(self) -> None:
        """Return if no more rows failed than the task allows.

        Raises:
            UserError: More failed, and all of them must fail again.
            RuntimeError: More failed, and another attempt may succeed.
        """
        found = too_many(self._failures, self._task.prompts, self._task.allowed_failures)
        if found is None:
            return
        message = f"{found}. The other rows are kept in {self._context.attempt_dir}"
        raise RuntimeError(message) if self.retry_may_help else UserError(message)
