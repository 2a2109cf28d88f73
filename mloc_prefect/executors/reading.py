"""From the prompts of a task to rows of tokens, for every engine: what is bad fails alone, and the wait is shown."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mloc_prefect.executors.batching import longest_first
from mloc_prefect.executors.rendering import RowError, work_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.executors.batching import Work
    from mloc_prefect.executors.data import Prompts
    from mloc_prefect.executors.rendering import Reader, Style

LIVE_SECONDS = 2.0
"""Seconds between two signs of life while no row ends."""


def read_rows(
    prompts: Prompts,
    finished: Collection[int],
    *,
    style: Style,
    reader: Reader,
    limit: int,
    context: ExecutionContext,
    on_bad: Callable[[int, str], None],
) -> tuple[list[Work], dict[int, str]]:
    """Return the rows to compute, longest first, and the rendered text of those that are chats.

    Args:
        prompts: All rows of the task.
        finished: Rows that are left out.
        style: How prompts are rendered.
        reader: Tokenizer and window of the model.
        limit: Most tokens of an answer.
        context: Told how far it is.
        on_bad: Given the number of a row that cannot be processed, and why.

    Raises:
        Cancelled: The client has gone.
    """
    work: list[Work] = []
    texts: dict[int, str] = {}
    live = time.monotonic()
    for index, prompt in enumerate(prompts):
        if index in finished:
            continue
        context.check()
        if time.monotonic() - live >= LIVE_SECONDS:
            live = time.monotonic()
            context.phase("reading prompts", index / len(prompts))
        try:
            text, row = work_of(index, prompt, style, reader, limit)
        except RowError as error:
            on_bad(index, str(error))
            continue
        if style.chat:
            texts[index] = text
        work.append(row)
    return longest_first(work), texts
