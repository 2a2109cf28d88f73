"""One pass over the missing rows of a task in a running vLLM engine: continuous feeding, journal, progress."""

from __future__ import annotations

import queue
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from mloc_prefect.executors.answers import judge
from mloc_prefect.executors.reading import LIVE_SECONDS, read_rows
from mloc_prefect.executors.vllm_engine import Answer, Job, Row

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.executors.data import Prompts
    from mloc_prefect.executors.rendering import Reader, Style
    from mloc_prefect.executors.vllm_engine import EngineLoop
    from mloc_prefect.executors.vllm_sampling import VllmSampling

_PATIENCE = 0.25  # seconds between looks at whether the task is still wanted


class VllmRows:
    """The rows of one attempt.

    Args:
        loop: The engine.
        reader: Tokenizer and window of the model.
        prompts: All rows of the task.
        keys: Their row keys.
        style: How prompts are rendered.
        sampling: How tokens are chosen.
        lora: `LoRARequest` of the task's adapter, or None.
        context: Where rows and events go.
    """

    def __init__(
        self,
        loop: EngineLoop,
        reader: Reader,
        prompts: Prompts,
        keys: Sequence[str],
        *,
        style: Style,
        sampling: VllmSampling,
        lora: Any,
        context: ExecutionContext,
    ) -> None:
        self._loop = loop
        self._reader = reader
        self._prompts = prompts
        self._keys = keys
        self._style = style
        self._sampling = sampling
        self._lora = lora
        self._context = context
        self._failures: dict[int, str] = {}
        self._texts: dict[int, str] = {}
        self._done = 0
        self._cut = 0
        self._tokens_in = 0
        self._tokens_out = 0
        self._shown = (0, 0)
        self._begun = self._live = time.monotonic()

    def compute(self, finished: Collection[int]) -> None:
        """Compute every row that is not in `finished`; a row that fails is recorded and left.

        Raises:
            Cancelled: The client has gone; its rows are taken out of the engine.
            EngineDeadError: The engine failed.
            UserError: The engine does not take what `spec.inference` asks for.
        """
        self._done = len(finished)
        job = Job(deque(self._rows(finished)))
        left = len(job.waiting)
        self._context.phase("generating")
        self._begun = time.monotonic()
        self._report((0, 0))
        if not left:
            return
        self._loop.try_parameters(job.waiting[0]).result()
        self._loop.submit(job)
        try:
            while left:
                left -= self._take(job)
        finally:
            self._loop.cancel(job)
        if self._cut and self._sampling.structure:
            self._context.log(
                f"{self._cut} answers reached inference.max_tokens, so they do not follow response_schema to its end",
                "warning",
            )

    def judge(self, allowed: int) -> None:
        """Return if at most `allowed` rows failed; see `answers.judge`."""
        attempt_dir = self._context.attempt_dir
        judge(self._failures, self._prompts, allowed=allowed, may_go_better=False, attempt_dir=attempt_dir)

    def _rows(self, finished: Collection[int]) -> list[Row]:
        from mloc_prefect.executors.vllm_parameters import parameters_of

        sampling = self._sampling
        work, self._texts = read_rows(
            self._prompts,
            finished,
            style=self._style,
            reader=self._reader,
            limit=sampling.common.max_new_tokens,
            context=self._context,
            on_bad=self._fail,
        )
        return [Row(w.index, w.tokens, parameters_of(sampling, w.index, w.limit), self._lora) for w in work]

    def _take(self, job: Job) -> int:
        """Wait for an answer, keep it, and return how many came."""
        self._context.check()
        try:
            answer = job.answers.get(timeout=_PATIENCE)
        except queue.Empty:
            if time.monotonic() - self._live >= LIVE_SECONDS:
                self._report(job.live())
            return 0
        if isinstance(answer, BaseException):
            raise answer
        if answer.error is not None:
            self._fail(answer.index, answer.error)
        else:
            self._keep(answer)
        self._report(job.live())
        return 1

    def _keep(self, answer: Answer) -> None:
        output, index = answer.output, answer.index
        best = output.outputs[0]
        read, written = len(output.prompt_token_ids), sum(len(o.token_ids) for o in output.outputs)
        extra: dict[str, Any] = {}
        if self._style.chat:
            extra["rendered_prompt"] = self._texts.pop(index)
        if self._sampling.n > 1:
            extra["outputs"] = [{"output": o.text, "finish_reason": o.finish_reason} for o in output.outputs]
        if self._sampling.logprobs is not None:
            extra["logprobs"] = _logprobs(best)
        self._context.rows.append(
            index,
            self._keys[index],
            output=best.text,
            finish_reason=best.finish_reason,
            usage={"prompt_tokens": read, "completion_tokens": written},
            **extra,
        )
        self._cut += best.finish_reason == "length"
        self._done += 1
        self._tokens_in += read
        self._tokens_out += written

    def _fail(self, index: int, problem: str) -> None:
        self._context.rows.append(index, self._keys[index], output="", error=problem)
        self._context.log(f"row {self._prompts.first + index}: {problem}", "warning")
        self._failures[index] = problem
        self._done += 1

    def _report(self, live: tuple[int, int]) -> None:
        """Tell how far it is; `live` are the tokens read and written of rows that are still in the engine."""
        self._live = time.monotonic()
        seconds = max(self._live - self._begun, 1e-3)
        # A row is for a moment neither in the engine nor counted here: never tell of fewer tokens than before.
        read = max(self._shown[0], self._tokens_in + live[0])
        written = max(self._shown[1], self._tokens_out + live[1])
        self._shown = read, written
        self._context.progress(
            self._done,
            len(self._prompts),
            tokens_in=read,
            tokens_out=written,
            tokens_in_per_second=round(read / seconds, 1),
            tokens_out_per_second=round(written / seconds, 1),
        )


def _logprobs(completion: Any) -> list[dict[str, Any]]:
    """Return one object for each token of an answer: itself, its log probability, and the likeliest ones."""
    rows = []
    for token, place in zip(completion.token_ids, completion.logprobs or (), strict=False):
        top = sorted(place.values(), key=lambda entry: entry.rank or 0)
        rows.append(
            {
                "token": place[token].decoded_token,
                "logprob": place[token].logprob,
                "top": [{"token": entry.decoded_token, "logprob": entry.logprob} for entry in top],
            }
        )
    return rows
