"""How long rows are in tokens, told before the model is loaded: what is cut, and what would be lost altogether."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mloc_prefect.executors.training_data import Row

_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Lengths:
    """What a limit does to rows.

    Attributes:
        total: Rows.
        longest: Tokens of the longest.
        limit: Most tokens of a row.
        cut: Rows that are longer.
        lost: Those of them whose prompt alone fills the limit, so that nothing of the answer is left.
    """

    total: int
    longest: int
    limit: int
    cut: int
    lost: int

    def note(self, field: str) -> str | None:
        """Return what to tell, None when nothing is cut.

        Args:
            field: The field that sets the limit.
        """
        if not self.cut:
            return None
        lost = f"; {self.lost} of them have a prompt of that length and are left out" if self.lost else ""
        return (
            f"{self.cut} of {self.total} rows are longer than {field} {self.limit} tokens and are cut "
            f"(the longest has {self.longest}){lost}"
        )


def row_lengths(tokenizer: Any, rows: Sequence[Row], limit: int, check: Callable[[], None]) -> Lengths:
    """Return what `limit` does to texts or pairs.

    Args:
        tokenizer: Of the model.
        rows: From `text_rows` or `pair_rows`.
        limit: Most tokens of a row.
        check: Called now and then; raises when the task is not wanted any more.

    Raises:
        UserError: No row would be left, or chat messages meet a tokenizer without a chat template.
    """
    longest = cut = lost = 0
    for before, whole in _sizes(tokenizer, rows, check):
        longest = max(longest, whole)
        cut += whole > limit
        lost += before >= limit
    if lost == len(rows):
        raise UserError(f"all {lost} prompts are {limit} tokens or longer, so no answer is left; raise max_seq_length")
    return Lengths(len(rows), longest, limit, cut, lost)


def cut_prompts(
    tokenizer: Any, rows: Sequence[Row], limit: int, check: Callable[[], None]
) -> tuple[list[list[int]], Lengths]:
    """Return the token ids of each prompt, of which the last `limit` are kept, and what was cut.

    Raises:
        UserError: Chat messages meet a tokenizer without a chat template.
    """
    kept: list[list[int]] = []
    longest = cut = 0
    for batch in _batches(rows, check):
        for ids in prompt_ids(tokenizer, [row["prompt"] for row in batch]):
            longest, cut = max(longest, len(ids)), cut + (len(ids) > limit)
            kept.append(ids[-limit:])
    return kept, Lengths(len(rows), longest, limit, cut, 0)


def shorten_prompts(tokenizer: Any, rows: Sequence[Row], most: int, check: Callable[[], None]) -> int:
    """Cut the beginning of text prompts that are longer than `most` tokens, in place; return how many were cut."""
    cut = 0
    for batch in _batches(rows, check):
        texts = [row for row in batch if isinstance(row.get("prompt"), str)]
        for row, ids in zip(
            texts, tokenizer([row["prompt"] for row in texts])["input_ids"] if texts else [], strict=True
        ):
            if len(ids) > most:
                row["prompt"] = tokenizer.decode(ids[-most:], skip_special_tokens=True)
                cut += 1
    return cut


def prompt_ids(tokenizer: Any, prompts: Sequence[Any]) -> list[list[int]]:
    """Return the token ids of prompts, which are texts or chat messages.

    Raises:
        UserError: Chat messages meet a tokenizer without a chat template.
    """
    if prompts and isinstance(prompts[0], list):
        return [_chat_ids(tokenizer, messages, add_generation_prompt=True) for messages in prompts]
    ids: list[list[int]] = tokenizer(list(prompts))["input_ids"]
    return ids


def _sizes(tokenizer: Any, rows: Sequence[Row], check: Callable[[], None]) -> Iterator[tuple[int, int]]:
    """Yield tokens of the prompt and of the whole row, the end token included."""
    for batch in _batches(rows, check):
        if "messages" in batch[0]:
            yield from ((0, len(_chat_ids(tokenizer, row["messages"]))) for row in batch)
        elif "chosen" in batch[0]:
            yield from _pair_sizes(tokenizer, batch)
        elif "completion" in batch[0]:
            before = tokenizer([row["prompt"] for row in batch])["input_ids"]
            whole = tokenizer([row["prompt"] + row["completion"] for row in batch])["input_ids"]
            yield from ((len(b), len(w) + 1) for b, w in zip(before, whole, strict=True))
        else:
            yield from ((0, len(ids) + 1) for ids in tokenizer([row["text"] for row in batch])["input_ids"])


def _pair_sizes(tokenizer: Any, batch: Sequence[Row]) -> Iterator[tuple[int, int]]:
    if isinstance(batch[0]["chosen"], list):
        for row in batch:
            before = row.get("prompt", [])
            both = (len(_chat_ids(tokenizer, [*before, *row[name]])) for name in ("chosen", "rejected"))
            yield (len(_chat_ids(tokenizer, before)) if before else 0, max(both))
        return
    before = tokenizer([row["prompt"] for row in batch])["input_ids"]
    better = tokenizer([row["prompt"] + row["chosen"] for row in batch])["input_ids"]
    worse = tokenizer([row["prompt"] + row["rejected"] for row in batch])["input_ids"]
    yield from ((len(b), max(len(x), len(y)) + 1) for b, x, y in zip(before, better, worse, strict=True))


def _chat_ids(tokenizer: Any, messages: Any, **options: Any) -> list[int]:
    if not tokenizer.chat_template:
        raise UserError("the data holds chat messages, but the tokenizer of this model has no chat template")
    encoded = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
    ids: list[int] = encoded["input_ids"]
    return ids


def _batches(rows: Sequence[Row], check: Callable[[], None]) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), _BATCH):
        check()
        yield rows[start : start + _BATCH]
