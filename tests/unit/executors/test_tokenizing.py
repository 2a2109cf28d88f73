"""From prompts to rows of tokens: the order, what is left out, and signs of life."""

from __future__ import annotations

from typing import Any

import pytest

from mloc_prefect.executors.common import tokenizing
from mloc_prefect.executors.common.prompt_data import Prompt, Prompts
from mloc_prefect.executors.common.rendering import PromptRenderer, RenderStyle
from mloc_prefect.executors.common.tokenizing import read_rows


class Tokenizer:
    """One token a character."""

    bos_token_id = None

    def __call__(self, text: str, **_more: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}


class Context:
    def __init__(self) -> None:
        self.phases: list[tuple[str, float | None]] = []

    def check(self) -> None:
        pass

    def phase(self, text: str, fraction: float | None = None) -> None:
        self.phases.append((text, fraction))


def read(*texts: str, finished: tuple[int, ...] = (), **style: Any) -> tuple[list[int], dict[int, str], Context]:
    bad: dict[int, str] = {}
    context = Context()
    work, _ = read_rows(
        Prompts(Prompt(text) for text in texts),
        finished,
        style=RenderStyle(**style),
        reader=PromptRenderer(Tokenizer(), 10, "m"),
        limit=4,
        context=context,  # type: ignore[arg-type]  # stands in
        on_bad=bad.__setitem__,
    )
    return [row.index for row in work], bad, context


def test_long_rows_come_first_and_bad_ones_fail_alone() -> None:
    rows, bad, _ = read("a", "much too long a text", "", "bbb", "cc", "dd", finished=(4,))
    assert rows == [3, 5, 0]
    assert bad == {1: "the prompt has 20 tokens, but the model reads at most 10", 2: "the prompt is empty"}


def test_many_prompts_are_read_with_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "LIVE_SECONDS", 0.0)
    _, _, context = read("a", "b", "c", "d")
    assert context.phases == [("reading prompts", n / 4) for n in range(4)]
