"""Generates one batch: sampling per row, stop texts, cancellation between tokens. Needs torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mloc_prefect.executors.common.sampling import NO_NUMBERS, cut_at_stop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mloc_prefect.executors.common.rendering import PendingRow
    from mloc_prefect.executors.common.sampling import Sampling
    from mloc_prefect.executors.transformers.model_engine import Engine


@dataclass(slots=True)
class DecodedRow:
    """The answer to one row.

    Attributes:
        index: Index of the row in the input.
        prompt_tokens: Tokens of its prompt, without padding.
        text: The answer, cut before a stop text.
        finish_reason: `stop` (end token or stop text), `length` or `error`; None while it is being generated.
        tokens: Generated token ids, the end token included.
        error: Why there is no answer, or None.
    """

    index: int
    prompt_tokens: int
    text: str = ""
    finish_reason: str | None = None
    tokens: list[int] = field(default_factory=list)
    error: str | None = None


def generate(
    engine: Engine,
    batch: Sequence[PendingRow],
    sampling: Sampling,
    *,
    on_token: Callable[[int], None],
    on_answer: Callable[[DecodedRow], None],
) -> None:
    """Generate the answers of `batch`.

    Sampling depends on the seed and the index of a row only, so the batch does not change it. The logits still differ
    in the last bits with the shape of a batch, which in rare cases changes a token.

    Args:
        engine: The model.
        batch: Rows; shorter prompts are padded on the left and the padding is masked.
        sampling: How tokens are chosen.
        on_token: Called at each step with the number of rows that receive a token; may raise to abort.
        on_answer: Called with each answer as soon as its row has ended.
    """
    width = max(len(work.tokens) for work in batch)
    ids = torch.full((len(batch), width), engine.pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, work in enumerate(batch):
        ids[row, width - len(work.tokens) :] = torch.tensor(work.tokens, dtype=torch.long)
        mask[row, width - len(work.tokens) :] = 1
    ids, mask = ids.to(engine.device), mask.to(engine.device)
    longest = max(work.limit for work in batch)
    scores = _ScoreCheck()
    with torch.inference_mode():
        engine.model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(
                max_new_tokens=longest, do_sample=False, pad_token_id=engine.pad, eos_token_id=None
            ),
            logits_processor=LogitsProcessorList([scores, *_processors(batch, sampling, mask, longest)]),
            stopping_criteria=StoppingCriteriaList([_RowEnds(engine, batch, sampling, scores, on_token, on_answer)]),
        )


def out_of_memory(error: Exception) -> bool:
    """Return whether `error` reports that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def _processors(
    batch: Sequence[PendingRow], sampling: Sampling, mask: torch.Tensor, longest: int
) -> LogitsProcessorList:
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        processors.append(_Repetition(sampling.repetition_penalty, mask))
    if not sampling.sample:
        return processors
    if sampling.temperature != 1.0:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k > 0:
        processors.append(TopKLogitsWarper(top_k=sampling.top_k))
    if sampling.top_p < 1.0:
        processors.append(TopPLogitsWarper(top_p=sampling.top_p))
    if sampling.min_p > 0.0:
        processors.append(MinPLogitsWarper(min_p=sampling.min_p))
    processors.append(_SeededSampler(batch, sampling, mask.shape[1], longest))
    return processors


class _ScoreCheck(LogitsProcessor):  # type: ignore[misc]  # untyped base
    """Remembers the rows whose scores are not finite; the most likely token of such a row is a matter of chance."""

    def __init__(self) -> None:
        self._highest: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        del input_ids
        self._highest = scores.amax(dim=-1)  # NaN if one score is; -inf alone is how models exclude tokens
        return scores

    def broken_rows(self) -> list[bool]:
        """Return for each row whether its last scores were not finite."""
        return [] if self._highest is None else (~torch.isfinite(self._highest)).tolist()


class _Repetition(LogitsProcessor):  # type: ignore[misc]  # untyped base
    """The usual repetition penalty, except that padding does not count as a token that has occurred."""

    def __init__(self, penalty: float, mask: torch.Tensor) -> None:
        self._penalty = penalty
        self._padded = mask == 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        width = self._padded.shape[1]
        seen = input_ids.clone()
        # Each padded position repeats the last token of its prompt: naming a token twice penalizes it once.
        seen[:, :width] = torch.where(self._padded, seen[:, width - 1 : width], seen[:, :width])
        found = scores.gather(1, seen)
        return scores.scatter(1, seen, torch.where(found < 0, found * self._penalty, found / self._penalty))


class _SeededSampler(LogitsProcessor):  # type: ignore[misc]  # untyped base
    """Samples one token per row from the row's own random stream, and makes all other tokens impossible."""

    def __init__(self, batch: Sequence[PendingRow], sampling: Sampling, width: int, longest: int) -> None:
        streams = []
        for work in batch:
            generator = torch.Generator().manual_seed(sampling.row_seed(work.index))
            streams.append(torch.rand(longest, generator=generator, dtype=torch.float64))
        self._numbers = torch.stack(streams)
        self._width = width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self._width
        # In double precision a sum over 10^5 small probabilities still reaches 1, so that no token is favored.
        reached = torch.softmax(scores.double(), dim=-1).cumsum(dim=-1)
        wanted = self._numbers[:, step : step + 1].to(scores.device) * reached[:, -1:]
        chosen = torch.searchsorted(reached, wanted, right=True).clamp_(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


class _RowEnds(StoppingCriteria):  # type: ignore[misc]  # untyped base
    """Follows each row token by token and ends it at an end token, a stop text or its limit."""

    def __init__(
        self,
        engine: Engine,
        batch: Sequence[PendingRow],
        sampling: Sampling,
        scores: _ScoreCheck,
        on_token: Callable[[int], None],
        on_answer: Callable[[DecodedRow], None],
    ) -> None:
        self._engine = engine
        self._scores = scores
        self._limits = [work.limit for work in batch]
        self._answers = [DecodedRow(work.index, len(work.tokens)) for work in batch]
        self._stop = sampling.stop
        # A stop text that is a single special token (`<|im_end|>`) does not appear in decoded text: compare its id.
        special = engine.tokenizer.get_added_vocab()
        self._stop_ids = engine.stops | {special[text] for text in sampling.stop if text in special}
        self._tail = max((len(text.encode()) for text in sampling.stop), default=0) + 8
        self._on_token = on_token
        self._on_answer = on_answer

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        del scores, kwargs
        last, broken = input_ids[:, -1].tolist(), self._scores.broken_rows()
        running = [row for row, answer in enumerate(self._answers) if answer.finish_reason is None]
        self._on_token(len(running))
        for row in running:
            if broken[row]:
                self._fail(row)
            else:
                self._add_token(row, last[row])
        ended = [answer.finish_reason is not None for answer in self._answers]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)

    def _add_token(self, row: int, token: int) -> None:
        answer = self._answers[row]
        answer.tokens.append(token)
        if token in self._stop_ids or self._stop_text_ended(answer):
            self._end(answer, "stop")
        elif len(answer.tokens) >= self._limits[row]:
            self._end(answer, "length")

    def _stop_text_ended(self, answer: DecodedRow) -> bool:
        if not self._stop:
            return False
        tail = self._decode(answer.tokens[-self._tail :])  # every token adds at least one byte, so this is enough
        return any(text in tail for text in self._stop) and cut_at_stop(self._decode(answer.tokens), self._stop)[1]

    def _end(self, answer: DecodedRow, reason: str) -> None:
        answer.text, cut = cut_at_stop(self._decode(answer.tokens), self._stop)
        answer.finish_reason = "stop" if cut else reason
        self._on_answer(answer)

    def _fail(self, row: int) -> None:
        answer = self._answers[row]
        answer.finish_reason, answer.error = "error", f"{NO_NUMBERS} (at token {len(answer.tokens) + 1})"
        self._on_answer(answer)

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._engine.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
