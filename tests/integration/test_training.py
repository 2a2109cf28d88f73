"""Each trainer for real on a tiny model: what it learns, on rows that it has not seen, beside the untrained model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mloc_prefect.errors import ArtifactError
from mloc_prefect.execution.protocol import Cancelled, UserError
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.sources.source_lookup import SourceLookup
from mloc_prefect.executors.training.rewards.scorers import scorer_of
from tests.support.disk import largest_file
from tests.support.tiny_model import cut_short, reshaped, save_tiny_model
from tests.support.training import (
    PAIRS,
    SUMS,
    TrainingBench,
    answer_loss,
    loaded,
    losses,
    prefers_chosen,
    sampled,
)

SUM_DATA = {"prompt_column": "question", "response_column": "answer", "separator": " "}
SUM_ROWS, UNSEEN_SUMS = SUMS[:56], [(f"{r['question']} ", r["answer"]) for r in SUMS[56:]]
SEEN_PAIRS, UNSEEN_PAIRS = PAIRS[:40], PAIRS[40:]
FAST = {
    "batch_size": 8,
    "logging_steps": 5,
    "learning_rate": 2e-2,
    "gradient_checkpointing": False,
    "save_strategy": "no",
}
VOWELS = [{"name": "regex", "pattern": "^[a-z]"}, {"name": "regex", "pattern": "^.[a-z]"}]
PROMPTS = [f"say {n}:" for n in range(16)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", window=64)


@pytest.fixture
def bench(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingBench:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # barriers between threads cost more than this model's arithmetic
    return TrainingBench(tmp_path, tiny)


def sums(**more: Any) -> dict[str, Any]:
    return {"rows": SUM_ROWS, **SUM_DATA, **more}


def test_sft_learns_what_it_has_not_seen(bench: TrainingBench) -> None:
    result = bench("sft", sums(), training={**FAST, "max_steps": 40})
    before, after = (answer_loss(*loaded(folder), UNSEEN_SUMS) for folder in (bench.model, result["final_model_path"]))
    assert after < before / 3
    curve = losses(result)
    assert (len(curve), curve[-1] < curve[0] / 2) == (9, True)
    task = bench.root / "task"
    assert result["training_successful"] is True
    assert (result["task_id"], result["model_name"], result["dataset_size"]) == ("task", str(bench.model), 56)
    assert (result["steps"], result["resumed_from_step"], result["error_message"]) == (40, None, None)
    assert result["final_model_archive"] == "final_model.zip"
    assert Path(result["final_model_archive_path"]) == task / "final_model.zip"
    assert result["checkpoints_dir"] == str(task / "checkpoints")
    assert (task / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert not (task / "final_model" / "training_args.bin").exists()
    progress = [e.data for e in bench.events if e.kind == "progress"]
    assert (progress[0]["done"], progress[-1]["done"], progress[-1]["total"]) == (0, 40, 40)
    assert progress[-1]["eta_seconds"] == 0
    assert bench.texts("log")[0].startswith("step 1 of 40: loss ")


def test_only_the_answer_counts_unless_asked_otherwise(bench: TrainingBench) -> None:
    """With `completion_only_loss: false` the prompts are learnt too; the field is TRL's own."""
    options = {**FAST, "max_steps": 25, "save_archive": False}
    prompts = [("", f"{r['question']} ") for r in SUMS[56:]]
    results = [
        bench("sft", sums(), task=f"t{all_}", training={**options, "completion_only_loss": not all_})
        for all_ in (False, True)
    ]
    learnt = [_prompt_loss(result["final_model_path"], prompts) for result in results]
    assert learnt[1] < learnt[0] / 2
    assert "final_model_archive" not in results[0]


def _prompt_loss(folder: str, rows: list[tuple[str, str]]) -> float:
    return answer_loss(*loaded(folder), [(text[:1], text[1:]) for _, text in rows])


def test_lora_trains_adapters_only(bench: TrainingBench) -> None:
    lora = {"r": 4, "alpha": 16, "dropout": 0.0, "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"]}
    result = bench("lora_sft", sums(), lora=lora, training={**FAST, "max_steps": 40})
    folder = Path(result["final_lora_path"])
    assert folder == bench.root / "task" / "final_lora"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], sorted(config["target_modules"])) == (
        4,
        16,
        sorted(lora["target_modules"]),
    )
    assert result["final_lora_archive"] == "final_lora.zip"
    assert not (bench.root / "task" / "final_model").exists()

    from peft import PeftModel

    model, tokenizer = loaded(bench.model)
    before = answer_loss(model, tokenizer, UNSEEN_SUMS)
    assert answer_loss(PeftModel.from_pretrained(model, str(folder)), tokenizer, UNSEEN_SUMS) < before * 0.7


def test_dpo_prefers_better_answers_that_it_has_not_seen(bench: TrainingBench) -> None:
    data = {"preferences": SEEN_PAIRS}
    result = bench("dpo", data, training={**FAST, "max_steps": 40, "learning_rate": 4e-3, "beta": 0.3})
    control, trained = (
        prefers_chosen(*loaded(folder), UNSEEN_PAIRS) for folder in (bench.model, result["final_model_path"])
    )
    assert (control, trained) == (0.0, 1.0)
    assert losses(result, "rewards/accuracies")[-1] == 1.0
    assert "task_id" not in result


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_rewards_rise_on_prompts_that_were_not_trained_on(kind: str, bench: TrainingBench) -> None:
    options = {
        "ppo": {"mini_batch_size": 16, "ppo_epochs": 2, "kl_coef": 0.0, "learning_rate": 4e-3},
        "grpo": {"num_generations": 8, "learning_rate": 1e-2},
    }
    training = {**FAST, "batch_size": 64, "steps": 40, **options[kind], "save_archive": False}
    generation = {"max_new_tokens": 2, "temperature": 1.0}
    result = bench(kind, {"prompts": PROMPTS[:12]}, rewards=VOWELS, generation=generation, training=training)
    scorer = scorer_of(SpecReader({"rewards": VOWELS}), SourceLookup.of({"home": str(bench.root)}), ())
    unseen = PROMPTS[12:] * 16

    def reward(folder: Any) -> float:
        return sum(scorer(unseen, sampled(*loaded(folder), unseen, 2), [{}] * len(unseen))) / len(unseen)

    control, trained = reward(bench.model), reward(result["final_model_path"])
    assert trained > control + 0.5, (control, trained)
    assert result["steps"] == 40
    curve = losses(result, "objective/scores" if kind == "ppo" else "reward")
    assert sum(curve[-3:]) > sum(curve[:3])


def test_ppo_stops_when_the_policy_moves_too_far(bench: TrainingBench) -> None:
    training = {**FAST, "steps": 9, "mini_batch_size": 8, "learning_rate": 5e-3, "target_kl": 1e-4, "save_model": False}
    spec = {"rewards": VOWELS, "generation": {"max_new_tokens": 2}, "training": training}
    result = bench("ppo", {"prompts": PROMPTS}, **spec)
    assert result["steps"] == 1
    assert result["ended_early"].startswith("stopped at step 1: the policy moved by ")
    assert "final_model_path" not in result
    training["early_stopping"] = False
    training["steps"] = 2
    assert bench("ppo", {"prompts": PROMPTS}, task="on", **spec)["ended_early"] is None


@pytest.mark.parametrize("kind", ["dpo", "ppo", "grpo"])
def test_prompts_are_cut_to_their_own_limit(kind: str, bench: TrainingBench) -> None:
    data = {"preferences": SEEN_PAIRS[20:28]} if kind == "dpo" else {"prompts": PROMPTS[:8]}
    own = {} if kind == "dpo" else {"rewards": VOWELS, "generation": {"max_new_tokens": 2}}
    for most, told in ((2, True), (40, False)):
        training = {**FAST, "steps": 1, "max_prompt_length": most, "save_model": False}
        result = bench(kind, data, task=f"at-most-{most}", training=training, **own)
        assert any(f" {most} " in note and "prompt" in note for note in result["notes"]) is told, result["notes"]


def test_stages_go_on_where_the_one_before_ended(bench: TrainingBench) -> None:
    options = {**FAST, "max_steps": 15, "logging_steps": 1, "save_archive": False}
    first = bench("lora_sft", sums(), task="a", training={**options, "learning_rate": 2e-2})
    load = {"load": {"path": first["final_lora_path"]}}
    second = bench("lora_sft", sums(), task="b", training=options, checkpoint=load, lora={"r": 99})
    merged = bench("sft", sums(), task="c", training=options, checkpoint=load)
    third = bench("sft", sums(), task="d", training=options, checkpoint={"load": {"task_id": "c"}})
    pairs = {"preferences": SEEN_PAIRS}
    dpo = bench("dpo", pairs, task="e", training=options, checkpoint={"load": {"task_id": "d"}}, lora={"r": 2})
    starts, ends = losses(first)[0], losses(first)[-1]
    for result in (second, merged):
        assert losses(result)[0] < (starts + ends) / 2, "it starts from what was learnt"
    assert losses(third)[0] < losses(merged)[0]
    assert json.loads(Path(second["final_lora_path"], "adapter_config.json").read_text())["r"] == 16
    assert any("is merged into the model" in note for note in merged["notes"])
    assert "final_model_path" in third
    assert "final_lora_path" in dpo


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("kind", ["dpo", "grpo", "ppo"])
def test_the_reference_is_what_the_training_starts_from(kind: str, lora: bool, bench: TrainingBench) -> None:
    """With an adapter of an earlier stage policy and reference are equal at the first step, not that and the base."""
    options = {**FAST, "max_steps": 15, "save_archive": False}
    bench("lora_sft", sums(), task="a", training=options, lora={"dropout": 0.0})
    own = {
        "dpo": {"learning_rate": 1e-3},
        "grpo": {"num_generations": 4, "beta": 0.1},
        "ppo": {"mini_batch_size": 8, "ppo_epochs": 1},
    }
    training = {**options, "logging_steps": 1, "max_steps": None, "steps": 4, "batch_size": 16, **own[kind]}
    data = {"preferences": SEEN_PAIRS} if kind == "dpo" else {"prompts": [r["question"] for r in SUM_ROWS]}
    rollout = {} if kind == "dpo" else {"rewards": VOWELS, "generation": {"max_new_tokens": 4}}
    load = {"checkpoint": {"load": {"task_id": "a"}}}
    spec = {"training": training, **rollout, **load, **({"lora": {"r": 2}} if lora else {})}
    result = bench(kind, data, task="b", **spec)
    distance = losses(result, {"dpo": "rewards/chosen", "grpo": "kl", "ppo": "objective/kl"}[kind])
    assert abs(distance[0]) < 1e-3
    assert max(map(abs, distance[1:])) > 1e-3, "and then it moves"
    if lora:
        assert [p for p in Path(result["final_lora_path"]).iterdir() if p.is_dir()] == []


def test_weights_of_a_checkpoint_without_its_optimiser(bench: TrainingBench) -> None:
    options = {**FAST, "max_steps": 10, "save_strategy": "steps", "save_steps": 10}
    first = bench("sft", sums(), task="a", training=options)
    path = str(Path(first["checkpoints_dir"]) / "checkpoint-10")
    second = bench("sft", sums(), task="b", training={**options, "logging_steps": 1, "resume_from_path": path})
    assert losses(second)[0] < losses(first)[0]
    assert (second["resume_from_path"], second["resumed_from_step"], second["steps"]) == (path, None, 10)
    with pytest.raises(UserError, match="Checkpoint path /none not found for resume"):
        bench("sft", sums(), task="c", training={**options, "resume_from_path": "/none"})


@pytest.mark.parametrize("kind", ["sft", "lora_sft", "dpo", "grpo", "ppo"])
def test_a_cancelled_training_leaves_a_checkpoint_to_go_on_from(kind: str, bench: TrainingBench) -> None:
    prompts, sft = {"prompts": PROMPTS}, sums()
    data = {"sft": sft, "lora_sft": sft, "dpo": {"preferences": SEEN_PAIRS}, "grpo": prompts, "ppo": prompts}[kind]
    training = {**FAST, "logging_steps": 1, "steps": 12, "save_strategy": "steps", "save_steps": 1000,
                **({"mini_batch_size": 8, "ppo_epochs": 1} if kind == "ppo" else {})}  # fmt: skip
    spec = {"training": training, "rewards": VOWELS, "generation": {"max_new_tokens": 2}}
    if kind in {"lora_sft", "dpo", "grpo"}:
        spec["lora"] = {"r": 4}
    whole = bench(kind, data, task="whole", **spec) if kind not in {"ppo", "grpo"} else None

    def stop(event: Any) -> None:
        if sum(e.kind == "metric" for e in bench.events) == 5:
            bench.cancelled.set()

    bench.on_event = stop
    with pytest.raises(Cancelled):
        bench(kind, data, **spec)
    assert bench.texts("log")[-1] == "saved a checkpoint at step 5"
    assert [e.data.get("patience") for e in bench.events if e.kind == "phase"][-1] == 60
    bench.cancelled.clear()
    bench.on_event = lambda _event: None
    result = bench(kind, data, **spec)
    assert (result["resumed_from_step"], result["steps"]) == (5, 12)
    assert "resuming from the checkpoint of step 5" in bench.texts("log")[0]
    steps = [json.loads(line)["step"] for line in Path(result["metrics_path"]).read_text().splitlines()]
    assert steps[:12] == list(range(1, 13)), "the curve is whole"
    if whole is not None:
        assert losses(result) == pytest.approx(losses(whole), rel=1e-3), "as if nothing had come between"
    own = bench.root / "task" / "attempts" / "1-2" / "metrics.jsonl"
    assert json.loads(own.read_text().splitlines()[0])["step"] == 6


def test_a_changed_spec_starts_anew(bench: TrainingBench) -> None:
    options = {**FAST, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    bench("sft", sums(), training=options)
    result = bench("sft", sums(), training={**options, "learning_rate": 1e-3})
    assert result["resumed_from_step"] is None


@pytest.mark.parametrize(
    ("size", "saving"), [(50_000, "steps"), (150_000, "steps"), (50_000, "no")], ids=["weights", "optimiser", "model"]
)
def test_a_full_disk_is_told_in_one_line_and_the_next_attempt_goes_on(
    size: int, saving: str, bench: TrainingBench
) -> None:
    """No file may grow beyond `size` bytes; a file of weights has 100 thousand, the optimiser's twice as many."""
    options = {**FAST, "max_steps": 3, "save_strategy": saving, "save_steps": 2}
    with (
        largest_file(size),
        pytest.raises(ArtifactError, match=r"^cannot save below .*, the disk is full") as told,
    ):
        bench("sft", sums(), training=options)
    assert "\n" not in told.value.message
    assert not (bench.root / "task" / "final_model").exists()
    result = bench("sft", sums(), training=options)
    assert (result["steps"], result["resumed_from_step"]) == (3, None), "what is torn does not count"


def test_what_is_cut_and_left_out_is_told(bench: TrainingBench) -> None:
    rows = [{"text": "short"}, {"text": "x" * 50}, {"text": ""}]
    result = bench(
        "sft", {"rows": rows}, training={**FAST, "max_steps": 1, "max_seq_length": 20, "log_with": "tensorboard"}
    )
    assert result["rows_cut"] == 1
    assert result["notes"] == [
        "1 of 3 rows are left out: they are empty",
        "1 of 2 rows are longer than training.max_seq_length 20 tokens and are cut (the longest has 51)",
    ]
    assert bench.texts("log")[:2] == result["notes"]
    assert next((bench.root / "task" / "tensorboard").iterdir()).name.startswith("events.out.tfevents")


def test_a_classifier_rates_answers(bench: TrainingBench, tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(bench.model)
    labels = {"id2label": {0: "sad", 1: "glad"}, "label2id": {"sad": 0, "glad": 1}}
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, initializer_range=0.6, **shape, **labels)
    rating = LlamaForSequenceClassification(config).eval()
    rating.save_pretrained(tmp_path / "rating")
    tokenizer.save_pretrained(tmp_path / "rating")
    model = {"identifier": "rating", "positive_label": "glad", "negative_label": "sad", "scale": 2.0}
    scorer = scorer_of(
        SpecReader({"reward_model": model}), SourceLookup.of({"home": "/x", "base_dir": str(tmp_path)}), ()
    )
    with torch.no_grad():
        wanted = [
            float(2 * (p := rating(**tokenizer([t], return_tensors="pt")).logits.softmax(-1)[0])[1] - 2 * p[0])
            for t in ("one", "another one")
        ]
    assert scorer(["?", "?"], ["one", "another one"], [{}, {}]) == pytest.approx(wanted, abs=1e-5)
    training = {**FAST, "steps": 2, "num_generations": 4, "save_model": False}
    result = bench(
        "grpo", {"prompts": PROMPTS}, reward_model=model, generation={"max_new_tokens": 4}, training=training
    )
    assert -2 <= losses(result, "reward")[0] <= 2 if losses(result, "reward") else result["steps"] == 2
    del model["positive_label"]
    with pytest.raises(
        UserError, match=r"which label is the positive one\? Set positive_label to one of \['sad', 'glad'\]"
    ):
        bench("ppo", {"prompts": PROMPTS}, task="b", reward_model=model, training={**FAST, "mini_batch_size": 8})


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("sft", {"data": {"rows": SUM_ROWS}}, "Dataset missing text field 'text'"),
        ("sft", {"training": {"optim": "none"}}, "spec.training is refused by TRL: none is not a valid OptimizerNames"),
        ("sft", {"training": {"packing": True, "padding_free": True, "packing_strategy": "odd"}}, "odd"),
        ("lora_sft", {"lora": {"target_modules": ["c_attn"]}}, "its linear layers are called down_proj, gate_proj"),
        ("sft", {"model": {"source": {"identifier": "org/none"}}}, "model 'org/none' was not found in any of three"),
        ("grpo", {"data": {"prompts": ["x"]}, "generation": {"max_new_tokens": 64}}, "leaves no room for a prompt"),
        ("grpo", {"data": {"prompts": ["x"]}, "rewards": [{"name": "exact"}], "generation": {"max_new_tokens": 4}},
         "needs the column 'answer'"),
        ("sft", {"data": {"rows": [{"text": [{"role": "user", "content": {"a": c}}]} for c in (1, 2)]}},
         "as content, not text or a list of parts"),
        ("sft", {"training": {"nproc_per_node": 0}}, "nproc_per_node must be a whole number >= 1"),
    ],
)  # fmt: skip
def test_mistakes_cost_no_model_load(kind: str, spec: dict[str, Any], message: str, bench: TrainingBench) -> None:
    training = {**FAST, "max_steps": 1, **spec.get("training", {})}
    whole = {"model": {"source": {"identifier": str(bench.model)}}, "data": sums(), **spec, "training": training}
    with pytest.raises(UserError, match=message):
        bench.run(kind, whole)
    if kind != "lora_sft" and "packing" not in training:
        assert "loading weights" not in bench.texts("phase")


def test_damaged_weights_are_one_line(bench: TrainingBench) -> None:
    said = {"torn/model.safetensors is damaged or cut short: ": cut_short, "other: its weights have other sh": reshaped}
    places = SourceLookup.of({"home": "/x", "base_dir": str(bench.root)})
    for text, spoil in said.items():
        folder = spoil(bench.model, bench.root / text.partition("/")[0].partition(":")[0])
        with pytest.raises(UserError, match=rf"^Failed to load model/tokenizer: {bench.root}/{text}") as caught:
            bench.run("sft", {"model": {"source": {"identifier": str(folder)}}, "data": sums(), "training": FAST})
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=rf"^Failed to load reward model: {bench.root}/torn/model.safetensors is dam"):
        scorer_of(SpecReader({"reward_model": {"identifier": "torn"}}), places, ())


def test_a_training_keeps_to_its_part_of_the_card(bench: TrainingBench, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    bounds: list[tuple[float, int]] = []

    def bound(share: float, device: int) -> None:
        bounds.append((share, device))
        raise UserError("bound")  # there is no card to go on with

    monkeypatch.setenv("MLOC_GPU_SHARE", "0.25")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", bound)
    with pytest.raises(UserError, match="bound"):
        bench("sft", sums(), training=FAST)
    assert bounds == [(0.25, 1)]


def test_the_number_of_threads_is_that_of_the_machine(bench: TrainingBench) -> None:
    import torch

    bench("sft", sums(), training={**FAST, "max_steps": 1, "save_model": False})
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
