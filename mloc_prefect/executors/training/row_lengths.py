"""Token counts of rows, measured before the model is loaded: what a limit cuts, and which rows it makes useless."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.failures import one_line
from mloc_prefect.execution.protocol import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mloc_prefect.executors.training.training_rows import Row

_BATCH = 1000
_END = -1  # stands for the end token
_REFUSALS = (ValueError, TypeError, KeyError, AttributeError)
"""What chat templates raise for messages that they do not know, in addition to Jinja's own errors."""


@dataclass(frozen=True, slots=True)
class CutRule:
    """How rows are cut, and what the loss counts.

    Attributes:
        limit: Largest number of tokens of a row.
        field: The field of `training` that sets it.
        keep_end: Whether rows lose their beginning instead of their end.
        whole: Whether the loss counts prompts, too.
        answers_only: Whether the loss counts only the assistant's turns of chats.
    """

    limit: int
    field: str = "max_seq_length"
    keep_end: bool = False
    whole: bool = False
    answers_only: bool = False

    def cut(self, ids: list[int]) -> list[int]:
        """Return what is left of a row."""
        return ids[-self.limit :] if self.keep_end else ids[: self.limit]


@dataclass(frozen=True, slots=True)
class Lengths:
    """What a token limit does to rows.

    Attributes:
        total: Number of rows.
        longest: Tokens of the longest row.
        limit: Largest number of tokens of a row.
        cut: Number of longer rows.
        lost: Number of these whose prompt alone fills the limit, so that nothing of the answer is left.
        same: Number of pairs whose answers are the same after the cut.
        over: Positions of the prompts that are longer.
    """

    total: int
    longest: int
    limit: int
    cut: int
    lost: int
    same: int = 0
    over: tuple[int, ...] = ()

    def note(self, field: str) -> str | None:
        """Return the note to log, None when nothing is cut.

        Args:
            field: The field that sets the limit.
        """
        if not self.cut:
            return None
        lost = f"; {self.lost} of them have a prompt of that length and are left out" if self.lost else ""
        same = f"; {self.same} of {self.total} pairs are the same after the cut and teach nothing" if self.same else ""
        return (
            f"{self.cut} of {self.total} rows are longer than {field} {self.limit} tokens and are cut "
            f"(the longest has {self.longest}){lost}{same}"
        )


def row_lengths(
    tokenizer: Any,
    rows: Sequence[Row],
    rule: CutRule,
    check: Callable[[], None],
    numbers: Sequence[int] | None = None,
) -> Lengths:
    """Return what a limit does to texts or pairs.

    Args:
        tokenizer: Tokenizer of the model.
        rows: From `text_rows` or `pair_rows`.
        rule: How rows are cut.
        check: Called regularly; raises after a cancellation.
        numbers: Number of each row in the data, for messages; None = as counted.

    Raises:
        UserError: No row would be left, or there are chat messages that the chat template refuses.
    """
    longest = cut = lost = same = 0
    limit = rule.limit
    for before, whole, alike in _sizes(_Templates(tokenizer, numbers), rows, rule, check):
        longest = max(longest, whole)
        cut += whole > limit
        lost += before >= limit and not rule.keep_end
        same += alike
    if lost == len(rows):
        raise UserError(f"all {lost} prompts are {limit} tokens or longer, so no answer is left; raise {rule.field}")
    if same == len(rows):
        raise UserError(
            f"after the cut to {limit} tokens chosen and rejected are the same in every pair, so there is nothing to "
            f"learn; raise {rule.field}"
        )
    return Lengths(len(rows), longest, limit, cut, lost, same)


def cut_prompts(
    tokenizer: Any,
    rows: Sequence[Row],
    limit: int,
    check: Callable[[], None],
    numbers: Sequence[int] | None = None,
    tools: Mapping[int, Any] | None = None,
) -> tuple[list[list[int]], Lengths]:
    """Return the last `limit` token ids of each prompt, and what was cut.

    Args:
        tokenizer: Tokenizer of the model.
        rows: From `prompt_rows`.
        limit: Largest number of tokens of a prompt.
        check: Called regularly; raises after a cancellation.
        numbers: Number of each row in the data, for messages; None = as counted.
        tools: The tools of chats, by position of their row.

    Raises:
        UserError: There are chat messages that the chat template refuses.
    """
    kept: list[list[int]] = []
    longest, over = 0, []
    templates = _Templates(tokenizer, numbers)
    for at, batch in _batches(rows, check):
        for ids in templates.prompt_ids([row["prompt"] for row in batch], at, tools or {}):
            longest = max(longest, len(ids))
            if len(ids) > limit:
                over.append(len(kept))
            kept.append(ids[-limit:])
    return kept, Lengths(len(rows), longest, limit, len(over), 0, over=tuple(over))


def shorten_prompts(tokenizer: Any, rows: Sequence[Row], most: int, check: Callable[[], None]) -> int:
    """Cut the beginning of text prompts longer than `most` tokens, in place; return how many were cut."""
    cut = 0
    for _, batch in _batches(rows, check):
        texts = [row for row in batch if isinstance(row.get("prompt"), str)]
        for row, ids in zip(
            texts, tokenizer([row["prompt"] for row in texts])["input_ids"] if texts else [], strict=True
        ):
            if len(ids) > most:
                row["prompt"] = tokenizer.decode(ids[-most:], skip_special_tokens=True)
                cut += 1
    return cut


@dataclass(frozen=True, slots=True)
class _Templates:
    """The tokenizer of the model, which names the row whose messages its chat template refuses."""

    tokenizer: Any
    numbers: Sequence[int] | None

    def prompt_ids(self, prompts: Sequence[Any], at: int, tools: Mapping[int, Any]) -> list[list[int]]:
        """Return the token ids of prompts, which are texts or chat messages; `at` is the position of the first."""
        if prompts and isinstance(prompts[0], list):
            return [
                self.chat_ids(messages, at + index, add_generation_prompt=True, tools=tools.get(at + index))
                for index, messages in enumerate(prompts)
            ]
        ids: list[list[int]] = self.tokenizer(list(prompts))["input_ids"]
        return ids

    def chat_ids(self, messages: Any, at: int, **options: Any) -> list[int]:
        """Return the token ids of one chat, at position `at` of the rows.

        Raises:
            UserError: There is no chat template, or it refuses the messages.
        """
        if not self.tokenizer.chat_template:
            raise UserError("the data holds chat messages, but the tokenizer of this model has no chat template")
        from jinja2 import TemplateError

        try:
            encoded = self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
        except (TemplateError, *_REFUSALS) as error:
            number = at if self.numbers is None else self.numbers[at]
            text = one_line(error, 300) or type(error).__name__
            raise UserError(f"the chat template of this model refuses row {number}: {text}") from error
        ids: list[int] = encoded["input_ids"]
        return ids


Size = tuple[int, int, bool]
"""Tokens of the prompt, tokens of the whole row with its end token, and whether both answers are cut alike."""


def _sizes(templates: _Templates, rows: Sequence[Row], rule: CutRule, check: Callable[[], None]) -> Iterator[Size]:
    tokenizer = templates.tokenizer
    for at, batch in _batches(rows, check):
        if "messages" in batch[0]:
            for index, row in enumerate(batch):
                before = _asked(templates, row, at + index) if rule.answers_only else 0
                yield before, len(templates.chat_ids(row["messages"], at + index, **_tools(row))), False
        elif "chosen" in batch[0]:
            yield from _pair_sizes(templates, batch, at, rule)
        elif "completion" in batch[0]:
            yield from _completion_sizes(templates, batch, at, rule)
        else:
            yield from ((0, len(ids) + 1, False) for ids in tokenizer([row["text"] for row in batch])["input_ids"])


def _tools(row: Row) -> dict[str, Any]:
    return {"tools": json.loads(row["tools"])} if row.get("tools") else {}


def _asked(templates: _Templates, row: Row, at: int) -> int:
    """Return the tokens before the first answer."""
    messages: Sequence[Any] = row["messages"]
    first = next((n for n, message in enumerate(messages) if message["role"] == "assistant"), 0)
    asked = {"add_generation_prompt": True, **_tools(row)}
    return len(templates.chat_ids(messages[:first], at, **asked)) if first else 0


def _completion_sizes(templates: _Templates, batch: Sequence[Row], at: int, rule: CutRule) -> Iterator[Size]:
    if isinstance(batch[0]["prompt"], list):
        for index, row in enumerate(batch):
            tools = _tools(row)
            before = len(templates.chat_ids(row["prompt"], at + index, add_generation_prompt=True, **tools))
            whole = len(templates.chat_ids([*row["prompt"], *row["completion"]], at + index, **tools))
            yield 0 if rule.whole else before, whole, False
        return
    asked = templates.tokenizer([row["prompt"] for row in batch])["input_ids"]
    both = templates.tokenizer([row["prompt"] + row["completion"] for row in batch])["input_ids"]
    yield from ((0 if rule.whole else len(b), len(w) + 1, False) for b, w in zip(asked, both, strict=True))


def _pair_sizes(templates: _Templates, batch: Sequence[Row], at: int, rule: CutRule) -> Iterator[Size]:
    if isinstance(batch[0]["chosen"], list):
        for index, row in enumerate(batch):
            before, tools = row.get("prompt", []), _tools(row)
            better, worse = (
                templates.chat_ids([*before, *row[name]], at + index, **tools) for name in ("chosen", "rejected")
            )
            asked = len(templates.chat_ids(before, at + index, **tools)) if before else 0
            yield asked, max(len(better), len(worse)), rule.cut(better) == rule.cut(worse)
        return
    tokenizer = templates.tokenizer
    before = tokenizer([row["prompt"] for row in batch])["input_ids"]
    chosen = tokenizer([row["prompt"] + row["chosen"] for row in batch])["input_ids"]
    rejected = tokenizer([row["prompt"] + row["rejected"] for row in batch])["input_ids"]
    for asked, better, worse in zip(before, chosen, rejected, strict=True):
        alike = rule.cut([*better, _END]) == rule.cut([*worse, _END])
        yield len(asked), max(len(better), len(worse)) + 1, alike


def _batches(rows: Sequence[Row], check: Callable[[], None]) -> Iterator[tuple[int, Sequence[Row]]]:
    """Yield the rows in parts, each with the position of its first row."""
    for start in range(0, len(rows), _BATCH):
        check()
        yield start, rows[start : start + _BATCH]
