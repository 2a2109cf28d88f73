"""Batches of rows of like length, so that little is padded, within a budget of tokens, so that memory holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class Work:
    """One row that still has to be computed.

    Attributes:
        index: Its place in the input.
        tokens: The token ids of its prompt.
        limit: How many tokens it may generate.
    """

    index: int
    tokens: tuple[int, ...]
    limit: int

    @property
    def size(self) -> int:
        """Tokens that its cache may grow to."""
        return len(self.tokens) + self.limit


@dataclass(slots=True)
class Budget:
    """What one batch may hold; shrinks when memory runs out.

    Attributes:
        tokens: Rows x (longest prompt + longest answer); padding counts, as it costs memory too.
        rows: Rows.
    """

    tokens: int
    rows: int

    def shrink(self, failed_rows: int) -> None:
        """Halve what a batch of `failed_rows` rows was too large for."""
        self.rows = max(1, min(self.rows, failed_rows // 2))


def longest_first(work: Iterable[Work]) -> list[Work]:
    """Return `work` in the order of computation: a batch that does not fit into memory shows at the start."""
    return sorted(work, key=lambda w: (-w.size, w.index))


def next_batch(waiting: Sequence[Work], budget: Budget) -> int:
    """Return how many rows from the start of `waiting` make the next batch; 0 only when nothing waits.

    A row that is larger than the budget makes a batch of its own.
    """
    prompt = answer = 0
    for count, work in enumerate(waiting[: budget.rows]):
        prompt, answer = max(prompt, len(work.tokens)), max(answer, work.limit)
        if count and (count + 1) * (prompt + answer) > budget.tokens:
            return count
    return min(len(waiting), budget.rows)
