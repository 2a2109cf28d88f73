"""Forms batches of rows of similar length (little padding) within a budget of tokens (bounded memory)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.executors.common.rendering import PendingRow


@dataclass(slots=True)
class TokenBudget:
    """Limits of one batch; reduced when memory runs out.

    Attributes:
        tokens: Rows x (longest prompt + longest answer); padding counts, because it needs memory too.
        rows: Number of rows.
    """

    tokens: int
    rows: int

    def shrink(self, failed_rows: int) -> None:
        """Halve the limit after a batch of `failed_rows` rows was too large."""
        self.rows = max(1, min(self.rows, failed_rows // 2))


def next_batch(waiting: Sequence[PendingRow], budget: TokenBudget) -> int:
    """Return how many rows from the start of `waiting` form the next batch; 0 only when none waits.

    A row that exceeds the budget forms its own batch.
    """
    prompt = answer = 0
    for count, work in enumerate(waiting[: budget.rows]):
        prompt, answer = max(prompt, len(work.tokens)), max(answer, work.limit)
        if count and (count + 1) * (prompt + answer) > budget.tokens:
            return count
    return min(len(waiting), budget.rows)
