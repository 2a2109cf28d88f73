"""One pass over the missing rows of a task in a running vLLM engine: continuous feeding, journal, progress."""

from __future__ import annotations

import queue
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from mloc_prefect.executors.common.row_recorder import RowRecorder
from mloc_prefect.executors.vllm.engine_loop import EngineAnswer, EngineJob, EngineRow

if TYPE_CHECKING:
    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.executors.common.inference_task import InferenceTask
    from mloc_prefect.executors.common.rendering import PromptRenderer
    from mloc_prefect.executors.vllm.engine_loop import EngineLoop
    from mloc_prefect.executors.vllm.vllm_sampling import VllmSampling

_POLL_SECONDS = 0.25
"""Seconds between two checks whether the task has been cancelled."""

_NO_ANSWER = ("error", "abort")
"""Reasons for which the engine ends a row without an answer."""


class VllmRows:
    """Computes the rows of one attempt.

    Args:
        loop: The engine.
        reader: Tokenizer and window of the model.
        task: The inference task.
        sampling: How tokens are chosen.
        lora: `LoRARequest` of the task's adapter, or None.
        context: Receives rows and events.
    """

    def __init__(
        self,
        loop: EngineLoop,
        reader: PromptRenderer,
        task: InferenceTask,
        sampling: VllmSampling,
        lora: Any,
        context: ExecutionContext,
    ) -> None:
        self._loop = loop
        self._reader = reader
        self._task = task
        self._sampling = sampling
        self._lora = lora
        self._context = context
        self._rows = RowRecorder(task, context)
        self._cut = 0
        self._tokens_in = 0
        self._tokens_out = 0
        self._shown = (0, 0)
        self._began = time.monotonic()

    def compute(self) -> None:
        """Compute every row that is not finished; failing rows are recorded and skipped.

        Raises:
            Cancelled: The task was cancelled; its rows are removed from the engine.
            EngineDeadError: The engine failed.
            UserError: The engine does not accept what `spec.inference` requests.
        """
        job = EngineJob(deque(self._engine_rows()))
        left = len(job.waiting)
        self._context.phase("generating")
        self._began = time.monotonic()
        self._report((0, 0))
        if not left:
            return
        self._loop.try_parameters(job.waiting[0]).result()
        self._loop.submit(job)
        try:
            while left:
                left -= self._take_answer(job)
        finally:
            self._loop.cancel(job)
        if self._cut and self._sampling.structure:
            self._context.log(
                f"{self._cut} answers reached inference.max_tokens, so they do not follow response_schema to its end",
                "warning",
            )

    def check_failures(self) -> None:
        """Return if no more rows failed than allowed; see `RowRecorder.check_failures`."""
        self._rows.check_failures()

    def _engine_rows(self) -> list[EngineRow]:
        from mloc_prefect.executors.vllm.sampling_parameters import parameters_of

        sampling = self._sampling
        rows = self._rows.tokenize(self._task.finished, self._reader, sampling.common.max_new_tokens)
        return [EngineRow(r.index, r.tokens, parameters_of(sampling, r.index, r.limit), self._lora) for r in rows]

    def _take_answer(self, job: EngineJob) -> int:
        """Wait for an answer, record it, and return how many arrived."""
        self._context.check()
        try:
            answer = job.answers.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            if self._rows.report_due:
                self._report(job.live())
            return 0
        if isinstance(answer, BaseException):
            raise answer
        if answer.error is not None:
            self._rows.add_failure(answer.index, answer.error)
        else:
            self._record(answer)
        self._report(job.live())
        return 1

    def _record(self, answer: EngineAnswer) -> None:
        output = answer.output
        if (fault := self._fault(output)) is not None:
            self._rows.add_failure(answer.index, fault)
            return
        best = output.outputs[0]
        read, written = len(output.prompt_token_ids), sum(len(o.token_ids) for o in output.outputs)
        extra: dict[str, Any] = {}
        if self._sampling.n > 1:
            extra["outputs"] = [{"output": o.text, "finish_reason": o.finish_reason} for o in output.outputs]
        if self._sampling.logprobs is not None:
            extra["logprobs"] = _logprobs(best)
        self._rows.add_answer(answer.index, best.text, best.finish_reason, read=read, written=written, **extra)
        self._cut += best.finish_reason == "length"
        self._tokens_in += read
        self._tokens_out += written

    def _fault(self, output: Any) -> str | None:
        """Return why the answer of the engine is none, or None."""
        structure = self._sampling.structure
        for one in output.outputs:
            reason = one.finish_reason
            if reason in _NO_ANSWER:
                if structure is not None and reason == "error":  # a grammar that cannot go on: it cannot next time
                    return f"vLLM ended the answer with finish_reason 'error': {structure[0]} of response_schema"
                self._rows.retry_may_help = True
                return f"vLLM ended the answer with finish_reason '{reason}'"
            if structure is not None and structure[0] == "json" and reason != "length" and not one.text.strip():
                return "the answer of vLLM is empty, which response_schema does not allow"
        return None

    def _report(self, live: tuple[int, int]) -> None:
        """Report progress; `live` are the prompt and generated tokens of rows that are still in the engine."""
        seconds = max(time.monotonic() - self._began, 1e-3)
        # For a moment a row is neither in the engine nor counted here: never report fewer tokens than before.
        read = max(self._shown[0], self._tokens_in + live[0])
        written = max(self._shown[1], self._tokens_out + live[1])
        self._shown = read, written
        self._rows.report(
            tokens_in=read,
            tokens_out=written,
            tokens_in_per_second=round(read / seconds, 1),
            tokens_out_per_second=round(written / seconds, 1),
        )


def _logprobs(completion: Any) -> list[dict[str, Any]]:
    """Return one object per token of an answer: the token, its log probability, and the most likely tokens."""
    rows = []
    for token, entries in zip(completion.token_ids, completion.logprobs or (), strict=False):
        top = sorted(entries.values(), key=lambda entry: entry.rank or 0)
        rows.append(
            {
                "token": entries[token].decoded_token,
                "logprob": entries[token].logprob,
                "top": [{"token": entry.decoded_token, "logprob": entry.logprob} for entry in top],
            }
        )
    return rows
