"""Batches: longest first, inside the budget, nothing lost."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from mloc_prefect.executors.common.rendering import PendingRow
from mloc_prefect.executors.common.tokenizing import longest_first
from mloc_prefect.executors.transformers.batching import TokenBudget, next_batch

rows = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), max_size=40)


def work(sizes: list[tuple[int, int]]) -> list[PendingRow]:
    return [PendingRow(i, (7,) * prompt, answer) for i, (prompt, answer) in enumerate(sizes)]


def all_batches(waiting: list[PendingRow], budget: TokenBudget) -> list[list[PendingRow]]:
    found = []
    while waiting:
        count = next_batch(waiting, budget)
        found.append(waiting[:count])
        waiting = waiting[count:]
    return found


@settings(max_examples=60, deadline=None)
@given(rows, st.integers(1, 400), st.integers(1, 8))
def test_every_row_once_and_no_batch_over_its_budget(sizes: list[tuple[int, int]], tokens: int, most: int) -> None:
    ordered = longest_first(work(sizes))
    assert sorted(w.index for w in ordered) == list(range(len(sizes)))
    assert all(a.size >= b.size for a, b in itertools.pairwise(ordered))
    for batch in all_batches(ordered, TokenBudget(tokens, most)):
        assert 1 <= len(batch) <= most
        cost = len(batch) * (max(len(w.tokens) for w in batch) + max(w.limit for w in batch))
        assert cost <= tokens or len(batch) == 1


def test_a_batch_is_as_large_as_the_budget_allows() -> None:
    assert [len(b) for b in all_batches(work([(6, 4)] * 7), TokenBudget(30, 100))] == [3, 3, 1]
    assert [len(b) for b in all_batches(work([(6, 4)] * 7), TokenBudget(1000, 4))] == [4, 3]


def test_shrinking_halves_what_failed_and_never_reaches_zero() -> None:
    budget = TokenBudget(1000, 32)
    budget.shrink(10)
    assert budget.rows == 5
    budget.shrink(1)
    assert budget.rows == 1
