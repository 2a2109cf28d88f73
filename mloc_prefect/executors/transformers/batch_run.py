"""One pass over the missing rows of a task: forms batches, isolates failing rows, reports progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mloc_prefect.execution.failures import one_line
from mloc_prefect.executors.common.gpu_memory import free_memory
from mloc_prefect.executors.common.rendering import PromptRenderer
from mloc_prefect.executors.common.row_recorder import RowRecorder
from mloc_prefect.executors.transformers.batching import next_batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.executors.common.inference_task import InferenceTask
    from mloc_prefect.executors.common.rendering import PendingRow
    from mloc_prefect.executors.common.sampling import Sampling
    from mloc_prefect.executors.transformers.batching import TokenBudget
    from mloc_prefect.executors.transformers.decoding import DecodedRow
    from mloc_prefect.executors.transformers.model_engine import Engine


class BatchRun:
    """Computes the rows of one attempt.

    Args:
        engine: The loaded model.
        task: The inference task.
        sampling: How tokens are chosen.
        context: Receives rows and events.
    """

    def __init__(self, engine: Engine, task: InferenceTask, sampling: Sampling, context: ExecutionContext) -> None:
        self._engine = engine
        self._task = task
        self._sampling = sampling
        self._context = context
        self._rows = RowRecorder(task, context)
        self._tokens_in = 0
        self._tokens_out = 0

    def compute(self, budget: TokenBudget) -> None:
        """Compute every row that is not finished; failing rows are recorded and skipped.

        Raises:
            Cancelled: The task was cancelled.
            UserError: Too many rows failed, and all of them must fail again.
            RuntimeError: Too many rows failed, or the device is no longer usable.
        """
        engine = self._engine
        reader = PromptRenderer(engine.tokenizer, engine.window, engine.location.identifier)
        waiting = self._rows.tokenize(self._task.finished, reader, self._sampling.max_new_tokens)
        self._context.phase("generating")
        self._report()
        while waiting:
            count = next_batch(waiting, budget)
            batch, rest = waiting[:count], waiting[count:]
            self._compute_batch(batch, budget)
            waiting = [*self._unfinished(batch), *rest]
        self._rows.check_failures()

    def _compute_batch(self, batch: Sequence[PendingRow], budget: TokenBudget) -> None:
        """Generate `batch`; after a failure, reduce the batch size (out of memory) or go row by row (other causes)."""
        problem, is_memory = self._generate(batch)
        if problem is None:
            return
        if len(batch) == 1:
            self._rows.retry_may_help = True
            for row in self._unfinished(batch):
                self._rows.add_failure(row.index, problem)
        elif is_memory:
            budget.shrink(len(batch))
            self._context.log(f"out of memory with {len(batch)} rows at once; continuing with {budget.rows}", "warning")
        else:
            self._context.log(f"a batch of {len(batch)} rows failed, continuing row by row: {problem}", "warning")
            for row in self._unfinished(batch):
                self._compute_batch([row], budget)

    def _unfinished(self, batch: Sequence[PendingRow]) -> list[PendingRow]:
        return [row for row in batch if row.index not in self._rows.ended]

    def _generate(self, batch: Sequence[PendingRow]) -> tuple[str | None, bool]:
        """Return the problem and whether it was memory; no exception is kept, because it would hold the tensors."""
        import torch

        from mloc_prefect.executors.transformers.decoding import generate, out_of_memory

        self._context.check()
        try:
            generate(self._engine, batch, self._sampling, on_token=self._count_tokens, on_answer=self._record)
        except (RuntimeError, ValueError, IndexError, TypeError, MemoryError) as error:
            if isinstance(error, torch.AcceleratorError) and not out_of_memory(error):
                raise  # the device is in an undefined state: only a new process helps
            is_memory = out_of_memory(error)
            problem = "out of memory" if is_memory else one_line(f"{type(error).__name__}: {error}", 500)
        else:
            return None, False
        free_memory()
        return problem, is_memory

    def _count_tokens(self, rows: int) -> None:
        """Count tokens, stop when cancelled, and report progress while no row of a long batch has ended."""
        self._context.check()
        self._tokens_out += rows
        if self._rows.report_due:
            self._report()

    def _record(self, answer: DecodedRow) -> None:
        if answer.error is not None:
            self._rows.add_failure(answer.index, answer.error)
            self._report()
            return
        self._rows.add_answer(
            answer.index, answer.text, answer.finish_reason, read=answer.prompt_tokens, written=len(answer.tokens)
        )
        self._tokens_in += answer.prompt_tokens
        self._report()

    def _report(self) -> None:
        self._rows.report(tokens_in=self._tokens_in, tokens_out=self._tokens_out)
