"""Odd data, words and weights: each is named in one attempt, or trained with a note, and nothing broken is saved."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from mloc_prefect.execution.protocol import UserError
from tests.support.tiny_model import CHAT_TEMPLATE, save_tiny_model, with_nan
from tests.support.training import TrainingBench

REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}[assistant]{% generation %}{{ m.content }}{{ eos_token }}"
    "{% endgeneration %}{% else %}[{{ m.role }}]{{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
QUICK = {"batch_size": 2, "max_steps": 2, "logging_steps": 1, "save_strategy": "no", "save_archive": False}
TEXTS = ["one two three", "four five six", "seven eight", "nine ten"]
PAIRS = [{"prompt": f"Q{n}?", "chosen": f" good{n}", "rejected": f" bad{n}"} for n in range(4)]
ROLLOUT = {"batch_size": 4, "steps": 1, "save_strategy": "no", "save_archive": False}
LENGTH = [{"name": "length", "target": 4}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", window=128)


@pytest.fixture
def bench(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingBench:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # barriers between threads cost more than this model's arithmetic
    return TrainingBench(tmp_path, tiny)


def with_template(bench: TrainingBench, folder: Path, template: str) -> TrainingBench:
    """Return a bench whose model has a chat template."""
    from transformers import AutoTokenizer

    model = save_tiny_model(folder / "chat", window=128)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(model)
    return TrainingBench(bench.root, model)


def chat(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def refused(bench: TrainingBench, kind: str, message: str, data: dict[str, Any], **spec: Any) -> None:
    """Run a training that must end as a mistake of the user, which costs one attempt, without a model."""
    task = f"task{len(bench.attempts)}"
    with pytest.raises(UserError, match=re.escape(message)):
        bench(kind, data, task=task, **spec)
    assert not list((bench.root / task).glob("final_*")), "a model was announced"


@pytest.mark.parametrize(
    ("kind", "data", "rate"),
    [("sft", {"prompts": TEXTS}, 1e4), ("dpo", {"preferences": PAIRS}, 1e20)],
)
def test_a_training_that_diverges_fails_and_saves_nothing(
    bench: TrainingBench, kind: str, data: dict[str, Any], rate: float
) -> None:
    training = {**QUICK, "max_steps": 6, "learning_rate": rate}
    refused(bench, kind, "the training diverged: weight '", data, training=training)


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_weights_that_are_broken_from_the_start_are_refused(bench: TrainingBench, tmp_path: Path, kind: str) -> None:
    model = with_nan(save_tiny_model(tmp_path / "broken", window=128))
    broken = TrainingBench(bench.root, model)
    options = ROLLOUT | {"num_generations": 2} if kind == "grpo" else QUICK
    rewards = {"rewards": LENGTH, "generation": {"max_new_tokens": 2}} if kind == "grpo" else {}
    refused(
        broken, kind, "is not finite (NaN), so it cannot be trained", {"prompts": TEXTS}, training=options, **rewards
    )


def test_what_trl_refuses_late_costs_one_attempt_with_its_sentence_and_the_field(bench: TrainingBench) -> None:
    message = (
        "TRL refuses this training: persistent_workers option needs num_workers > 0 (see spec.training.dataloader_"
    )
    options = {**QUICK, "dataloader_persistent_workers": True}
    refused(bench, "sft", message, {"prompts": TEXTS}, training=options)
    options = {**QUICK, "label_smoothing_factor": 0.1}
    refused(bench, "sft", "TRL refuses this training: ", {"prompts": TEXTS}, training=options)


def test_label_smoothing_goes_with_the_loss_that_the_check_names(bench: TrainingBench) -> None:
    result = bench("sft", {"prompts": TEXTS}, training={**QUICK, "label_smoothing_factor": 0.1, "loss_type": "nll"})
    assert result["training_successful"]


def test_a_row_that_the_chat_template_refuses_is_named(bench: TrainingBench, tmp_path: Path) -> None:
    rows = [{"messages": chat(("user", "q"), ("assistant", "a"))}]
    rows += [{"messages": chat(("system", "be brief"), ("user", "q"), ("assistant", "a"))}]
    message = "the chat template of this model refuses row 1: System role not supported"
    gemma = with_template(bench, tmp_path, REFUSING + CHAT_TEMPLATE)
    refused(gemma, "sft", message, {"rows": rows, "text_field": "messages"}, training=QUICK)


def test_rows_of_no_valid_unicode_are_left_out_with_a_note(bench: TrainingBench) -> None:
    rows = [{"text": "fine here"}, {"text": "half \ud83d of it"}, {"text": "fine too"}]
    note = "1 of 3 rows are left out: no valid Unicode text: row 1, column 'text'"
    result = bench("sft", {"rows": rows}, training=QUICK)
    assert (result["dataset_size"], result["notes"]) == (2, [note])
    options = {**ROLLOUT, "batch_size": 2, "mini_batch_size": 1, "save_model": False}
    data, generation = {"rows": rows, "prompt_column": "text"}, {"max_new_tokens": 2}
    rated = bench("ppo", data, rewards=LENGTH, generation=generation, training=options)
    assert (rated["dataset_size"], rated["notes"]) == (2, [note])


def test_answers_that_all_lie_behind_the_limit_are_refused(bench: TrainingBench, tmp_path: Path) -> None:
    marked = with_template(bench, tmp_path, MARKED)
    rows = [{"messages": chat(("user", "q" * 200), ("assistant", "a"))}] * 2
    options = {**QUICK, "max_seq_length": 32, "assistant_only_loss": True}
    message = "all 2 prompts are 32 tokens or longer, so no answer is left; raise max_seq_length"
    refused(marked, "sft", message, {"rows": rows, "text_field": "messages"}, training=options)
    rows = [{"messages": chat(("user", "q"), ("assistant", f"a{n}"))} for n in range(2)]
    rows += [{"messages": chat(("user", "alone"))}, {"messages": chat(("user", "q" * 200), ("assistant", "a"))}]
    result = marked("sft", {"rows": rows, "text_field": "messages"}, training=options)
    assert "1 of 4 rows are left out: assistant_only_loss counts answers, and they have none" in result["notes"]


def test_answers_as_messages_to_prompts_as_text(bench: TrainingBench, tmp_path: Path) -> None:
    answering = with_template(bench, tmp_path, CHAT_TEMPLATE)
    rows = [
        {"prompt": pair["prompt"], **{name: chat(("assistant", pair[name])) for name in ("chosen", "rejected")}}
        for pair in PAIRS
    ]
    result = answering("dpo", {"rows": rows}, training=QUICK)
    assert (result["dataset_size"], result["notes"]) == (4, [])
    sums = [{"q": chat(("user", "1+1=")), "a": "2"}] * 2
    data = {"rows": sums, "prompt_column": "q", "response_column": "a"}
    assert answering("sft", data, training=QUICK)["dataset_size"] == 2


def test_pairs_that_are_cut_alike_are_counted_or_refused(bench: TrainingBench) -> None:
    alike = [{"prompt": "Q?", "chosen": "x y " * 40 + "good", "rejected": "x y " * 40 + "bad"}]
    options = {**QUICK, "max_length": 30}
    message = "after the cut to 30 tokens chosen and rejected are the same in every pair"
    refused(bench, "dpo", message, {"preferences": alike * 2}, training=options)
    result = bench("dpo", {"preferences": [*alike, *PAIRS[:2]]}, training=options)
    assert "1 of 3 pairs are the same after the cut and teach nothing" in result["notes"][0]


def test_columns_that_nothing_reads_are_not_looked_at(bench: TrainingBench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def look(*, completions: list[str], rows: list[dict[str, Any]], **_: Any) -> list[float]:
        seen.extend(rows)
        return [float(len(text)) for text in completions]

    module = types.ModuleType("lab_rewards")
    module.look = look  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lab_rewards", module)
    bench.settings["allowed_rewards"] = "lab_rewards"
    rows = [
        {"prompt": "p", "id": 1, "image": "a.png", "completion": {"a": 1}},
        {"prompt": "q", "id": "a2", "image": "b.png", "completion": [2**70]},
    ]
    rewards, generation = [*LENGTH, {"path": "lab_rewards:look"}], {"max_new_tokens": 2}
    bench("grpo", {"rows": rows}, rewards=rewards, generation=generation, training={**ROLLOUT, "num_generations": 2})
    wanted = [{name: value for name, value in row.items() if name != "prompt"} for row in rows]
    assert len(seen) == 1 + 4, "first of all the rewards are tried on a row"
    assert all(row in wanted for row in seen[1:]), "rewards see the values as they are in the data"


def test_rows_without_an_answer_are_left_out_and_named(bench: TrainingBench) -> None:
    rows = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "2+2=", "answer": None}]
    options, generation = {**ROLLOUT, "num_generations": 2}, {"max_new_tokens": 2}
    result = bench("grpo", {"rows": rows}, rewards=[{"name": "exact"}], generation=generation, training=options)
    assert result["dataset_size"] == 1
    note = "1 of 2 rows are left out: they have no value in column 'answer', which spec.rewards[0] reads (row 1)"
    assert note in result["notes"]


def test_a_reward_that_returns_nothing_is_named(bench: TrainingBench, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("lab_rewards")
    module.nothing = lambda **_: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lab_rewards", module)
    bench.settings["allowed_rewards"] = "lab_rewards"
    spec = {"rewards": [{"path": "lab_rewards:nothing"}], "training": {**ROLLOUT, "num_generations": 2}}
    message = "reward 'lab_rewards:nothing' gave None, which is no list of numbers"
    refused(bench, "grpo", message, {"prompts": ["1+1=", "2+2="]}, generation={"max_new_tokens": 2}, **spec)


def test_chats_are_trained_as_they_are(bench: TrainingBench, tmp_path: Path) -> None:
    """Arguments of calls without the nulls of other rows, parts of text joined, tools rendered."""
    from transformers import AutoTokenizer

    template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{% endfor %}"
    )
    tuned = with_template(bench, tmp_path, template)
    calls = [{"type": "function", "function": {"name": "f", "arguments": given}} for given in ({"x": 1}, {"y": "a"})]
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [call]}]}
        for call in calls
    ]
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    rows += [{"messages": [*parts, {"role": "assistant", "content": "c"}], "tools": [{"name": "f"}]}]
    rows += [{"messages": chat(("user", "q"), ("assistant", "a"))}]
    texts = [
        '[user]q[assistant]{"name": "f", "arguments": {"x": 1}}',
        '[user]q[assistant]{"name": "f", "arguments": {"y": "a"}}',
        '[{"name": "f"}][user]a\nb[assistant]c',
        "[user]q[assistant]a",
    ]
    options = {**QUICK, "batch_size": 4, "max_steps": 1}
    tuned("sft", {"rows": rows, "text_field": "messages"}, training=options)
    steps = [json.loads(line) for line in (bench.root / "task" / "metrics.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(tuned.model)
    found = {step["num_tokens"] for step in steps if "num_tokens" in step}
    assert found == {sum(len(tokenizer(text)["input_ids"]) for text in texts)}

    pairs = [
        {"prompt": chat(("user", "q")), "chosen": row["messages"][1:], "rejected": chat(("assistant", "no"))}
        for row in rows
    ]
    assert tuned("dpo", {"rows": pairs}, training=options)["training_successful"]


def test_chats_without_room_for_an_answer_are_left_out_of_grpo(bench: TrainingBench) -> None:
    rows = [{"prompt": chat(("user", text))} for text in ("q" * 200, "q", "r")]
    options, generation = {**ROLLOUT, "num_generations": 2}, {"max_new_tokens": 2}
    result = bench("grpo", {"rows": rows}, rewards=LENGTH, generation=generation, training=options)
    assert result["dataset_size"] == 2
    assert "1 of 3 rows are left out: chats of more than 126 tokens, the room for prompts" in result["notes"]
    message = "all 1 prompts are chats of more than 126 tokens"
    refused(bench, "grpo", message, {"rows": rows[:1]}, rewards=LENGTH, generation=generation, training=options)


def test_prompts_of_chats_are_not_cut_and_that_is_noted(bench: TrainingBench) -> None:
    pairs = [{"prompt": chat(("user", "q")), "chosen": chat(("assistant", "a")), "rejected": chat(("assistant", "b"))}]
    result = bench("dpo", {"rows": pairs * 2}, training={**QUICK, "max_prompt_length": 4})
    assert result["notes"] == ["max_prompt_length has no effect: prompts of chat messages are not cut"]
