"""Tokenizes the prompts of a task, for every engine: invalid rows fail alone, and progress is reported."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mloc_prefect.executors.chat.chat_template import ChatRenderer, RowError
from mloc_prefect.executors.common.rendering import tokenize_prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.executors.common.prompt_data import Prompts
    from mloc_prefect.executors.common.rendering import PendingRow, PromptRenderer, RenderStyle

LIVE_SECONDS = 2.0
"""Seconds between two progress reports while no row finishes."""


def read_rows(
    prompts: Prompts,
    finished: Collection[int],
    *,
    style: RenderStyle,
    reader: PromptRenderer,
    limit: int,
    context: ExecutionContext,
    on_bad: Callable[[int, str], None],
) -> tuple[list[PendingRow], dict[int, str]]:
    """Return the rows to compute, longest first, and the rendered text of those that are chats.

    Args:
        prompts: All rows of the task.
        finished: Rows to leave out.
        style: How prompts are rendered.
        reader: Tokenizer and window of the model.
        limit: Largest number of tokens of an answer.
        context: Receives progress.
        on_bad: Called with the index of a row that cannot be processed, and the reason.

    Raises:
        Cancelled: The task was cancelled.
        UserError: A row is a chat, and there is no chat template.
    """
    renderer = ChatRenderer(reader.tokenizer, reader.identifier, style.options)
    if unread := renderer.unread_arguments():
        context.log(f"the chat template does not read {', '.join(unread)} of chat_template_kwargs", "warning")
    work: list[PendingRow] = []
    texts: dict[int, str] = {}
    reported = time.monotonic()
    for index, prompt in enumerate(prompts):
        if index in finished:
            continue
        context.check()
        if time.monotonic() - reported >= LIVE_SECONDS:
            reported = time.monotonic()
            context.phase("reading prompts", index / len(prompts))
        try:
            text, row = tokenize_prompt(index, prompt, style, reader, renderer, limit)
        except RowError as error:
            on_bad(index, str(error))
            continue
        if style.is_chat(prompt):
            texts[index] = text
        work.append(row)
    return longest_first(work), texts


def longest_first(work: Iterable[PendingRow]) -> list[PendingRow]:
    """Return `work` in the order of computation: a batch that exceeds the memory then fails at the start."""
    return sorted(work, key=lambda w: (-w.size, w.index))
