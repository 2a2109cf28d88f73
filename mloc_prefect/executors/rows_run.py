"""One pass over the missing rows of a task: batches, failures of single rows, progress."""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING

from mloc_prefect.executors.answers import judge
from mloc_prefect.executors.batching import next_batch
from mloc_prefect.executors.reading import LIVE_SECONDS, read_rows
from mloc_prefect.executors.rendering import Reader

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.executors.batching import Budget, Work
    from mloc_prefect.executors.data import Prompts
    from mloc_prefect.executors.decoding import Answer
    from mloc_prefect.executors.engine import Engine
    from mloc_prefect.executors.rendering import Style
    from mloc_prefect.executors.sampling import Sampling


class RowsRun:
    """The rows of one attempt.

    Args:
        engine: The loaded model.
        prompts: All rows of the task.
        keys: Their row keys.
        style: How prompts are rendered.
        sampling: How tokens are chosen.
        context: Where rows and events go.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Prompts,
        keys: Sequence[str],
        style: Style,
        sampling: Sampling,
        context: ExecutionContext,
    ) -> None:
        self._engine = engine
        self._prompts = prompts
        self._keys = keys
        self._style = style
        self._sampling = sampling
        self._context = context
        self._ended: set[int] = set()
        self._failures: dict[int, str] = {}
        self._may_go_better = False
        self._tokens_in = 0
        self._tokens_out = 0
        self._texts: dict[int, str] = {}
        self._live = time.monotonic()

    def compute(self, finished: Collection[int], budget: Budget) -> None:
        """Compute every row that is not in `finished`; a row that fails is recorded and left.

        Raises:
            Cancelled: The client has gone.
            RuntimeError: The device is no longer usable.
        """
        self._ended.update(finished)
        engine = self._engine
        waiting, self._texts = read_rows(
            self._prompts,
            finished,
            style=self._style,
            reader=Reader(engine.tokenizer, engine.window, engine.place.identifier),
            limit=self._sampling.max_new_tokens,
            context=self._context,
            on_bad=self._fail,
        )
        self._context.phase("generating")
        self._report()
        while waiting:
            count = next_batch(waiting, budget)
            batch, waiting = waiting[:count], waiting[count:]
            self._batch(batch, budget)
            waiting = [work for work in batch if work.index not in self._ended] + waiting

    def judge(self, allowed: int) -> None:
        """Return if at most `allowed` rows failed.

        Raises:
            UserError: More did, and all of them must fail again.
            RuntimeError: More did, and another attempt may go better.
        """
        judge(
            self._failures,
            self._prompts,
            allowed=allowed,
            may_go_better=self._may_go_better,
            attempt_dir=self._context.attempt_dir,
        )

    def _batch(self, batch: Sequence[Work], budget: Budget) -> None:
        """Generate `batch`; after a failure, go on in halves (memory) or row by row (anything else)."""
        problem, memory = self._generate(batch)
        if problem is None:
            return
        rest = [work for work in batch if work.index not in self._ended]
        if len(batch) == 1:
            self._may_go_better = True
            for work in rest:
                self._fail(work.index, problem)
        elif memory:
            budget.shrink(len(batch))
            self._context.log(f"out of memory with {len(batch)} rows at once; going on with {budget.rows}", "warning")
        else:
            self._context.log(f"a batch of {len(batch)} rows failed, going on row by row: {problem}", "warning")
            for work in rest:
                self._batch([work], budget)

    def _generate(self, batch: Sequence[Work]) -> tuple[str | None, bool]:
        """Return what went wrong, and whether it was memory; no exception is kept, as it would hold the tensors."""
        import torch

        from mloc_prefect.executors.decoding import generate, out_of_memory

        self._context.check()
        try:
            generate(self._engine, batch, self._sampling, on_token=self._token, on_answer=self._answer)
        except (RuntimeError, ValueError, IndexError, TypeError, MemoryError) as error:
            if isinstance(error, torch.AcceleratorError) and not out_of_memory(error):
                raise  # the device is in an undefined state: only a new process helps
            memory = out_of_memory(error)
            problem = "out of memory" if memory else " ".join(f"{type(error).__name__}: {error}".split())[:500]
        else:
            return None, False
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return problem, memory

    def _token(self, rows: int) -> None:
        """Count tokens, end when cancelled, and show life while a long batch yields no whole row."""
        self._context.check()
        self._tokens_out += rows
        if time.monotonic() - self._live >= LIVE_SECONDS:
            self._report()

    def _answer(self, answer: Answer) -> None:
        extra = {"rendered_prompt": self._texts.pop(answer.index)} if self._style.chat else {}
        self._context.rows.append(
            answer.index,
            self._keys[answer.index],
            output=answer.text,
            finish_reason=answer.finish_reason,
            usage={"prompt_tokens": answer.prompt_tokens, "completion_tokens": len(answer.tokens)},
            **extra,
        )
        self._ended.add(answer.index)
        self._tokens_in += answer.prompt_tokens
        self._report()

    def _fail(self, index: int, problem: str) -> None:
        self._context.rows.append(index, self._keys[index], output="", error=problem)
        self._context.log(f"row {self._prompts.first + index}: {problem}", "warning")
        self._failures[index] = problem
        self._ended.add(index)

    def _report(self) -> None:
        self._live = time.monotonic()
        self._context.progress(
            len(self._ended), len(self._prompts), tokens_in=self._tokens_in, tokens_out=self._tokens_out
        )
