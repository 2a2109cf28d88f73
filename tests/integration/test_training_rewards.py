"""Which rows and texts the rewards of ppo and grpo see."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_model import save_tiny_model
from tests.support.training import TrainingBench

PPO = {"mini_batch_size": 8, "ppo_epochs": 1, "save_strategy": "no", "save_model": False}
Seen = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingBench:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # barriers between threads cost more than this model's arithmetic
    bench = TrainingBench(tmp_path, save_tiny_model(tmp_path / "tiny", window=64))
    bench.settings["allowed_rewards"] = "lab_rewards"
    return bench


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Prompt and row of each answer that was rated."""
    found: Seen = []

    def look(*, prompts: list[str], completions: list[str], rows: list[dict[str, Any]]) -> list[float]:
        found.extend(zip(prompts, rows, strict=True))
        return [float(len(text)) for text in completions]

    module = types.ModuleType("lab_rewards")
    module.look = look  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lab_rewards", module)
    return found


def rate(bench: TrainingBench, rows: list[dict[str, Any]], **training: Any) -> None:
    rewards = [{"path": "lab_rewards:look"}]
    bench("ppo", {"rows": rows}, rewards=rewards, generation={"max_new_tokens": 2}, training={**PPO, **training})


def test_a_prompt_may_hold_the_token_that_pads(bench: TrainingBench, seen: Seen) -> None:
    """Chat templates write the end token between messages, and many tokenizers have no other to pad with."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bench.model)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<end>{% endfor %}"
    tokenizer.save_pretrained(bench.model)
    rows = [{"prompt": [{"role": "user", "content": f"{n}+1="}], "answer": n + 1} for n in range(72)]
    rate(bench, rows, batch_size=72, steps=2)  # a batch of answers is rated 64 at a time
    rated = [(prompt, row["answer"]) for prompt, row in seen[1:]]  # first of all the rule is tried on a row
    assert sorted(rated) == sorted([(f"{n}+1=", n + 1) for n in range(72)] * 2)


def test_rows_with_the_same_prompt_are_rated_each_by_its_own_columns(bench: TrainingBench, seen: Seen) -> None:
    rows = [{"prompt": "say it:", "answer": letter} for letter in "abcdefgh"]
    rate(bench, rows, batch_size=8, steps=2)
    answers = [row["answer"] for _, row in seen[1:]]
    assert [sorted(answers[:8]), sorted(answers[8:])] == [list("abcdefgh")] * 2
