"""Which rows and texts the rewards of ppo and grpo see."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.sources.source_lookup import SourceLookup
from mloc_prefect.executors.training.rewards.scorers import scorer_of
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


def save_classifier(folder: Path, tokenizer: Path, kind: str) -> Path:
    """Save a classifier that reads 16 tokens, with the tokenizer of another model."""
    import transformers

    roberta = kind == "Roberta"
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=512, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=18 if roberta else 16, pad_token_id=1 if roberta else 0, type_vocab_size=1,
        id2label={0: "NEGATIVE", 1: "POSITIVE"}, label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )  # fmt: skip
    getattr(transformers, f"{kind}ForSequenceClassification")(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_a_classifier_gets_no_more_than_it_reads(kind: str, bench: TrainingBench) -> None:
    """Its table of positions ends there, and what is beyond would be an error after the first long answer."""
    save_classifier(bench.root / "judge", bench.model, kind)
    places = SourceLookup.of({"home": str(bench.root), "base_dir": str(bench.root)})
    for wanted, told in ((None, 0), (16, 0), (17, 1), (64, 1)):
        notes: list[str] = []
        spec = {"reward_model": {"identifier": "judge", **({"max_length": wanted} if wanted else {})}}
        scorer = scorer_of(SpecReader(spec), places, (), notes=notes)
        assert scorer(["?", "?"], ["long" * 9, "long" * 4], [{}, {}])[0] == pytest.approx(
            scorer(["?"], ["long" * 4], [{}])[0], abs=1e-5
        )
        assert len(notes) == told


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_what_a_classifier_does_not_read_is_told(kind: str, bench: TrainingBench) -> None:
    save_classifier(bench.root / "judge", bench.model, "Bert")
    training = {"batch_size": 8, "steps": 1, "save_strategy": "no", "save_model": False}
    result = bench(
        kind,
        {"prompts": [f"say {n}:" for n in range(8)]},
        reward_model={"identifier": "judge", "max_length": 64},
        generation={"max_new_tokens": 30},
        training={**PPO, **training} if kind == "ppo" else training,
    )
    note = "spec.reward_model.max_length 64 is more than the 16 tokens that the reward model reads"
    assert note in result["notes"]
    assert note in bench.texts("log")
