"""Options that TRL would refuse after the model is loaded are reported when the spec is checked."""

from __future__ import annotations

from typing import Any

import pytest

from mloc_prefect.tasks.checks import check_spec
from mloc_prefect.tasks.registry import task_type
from mloc_prefect.tasks.training.option_limits import BOUNDS, without_effect
from mloc_prefect.tasks.training.training_table import KINDS, passed_on


def problems_of(kind: str, training: dict[str, Any], **blocks: Any) -> list[tuple[str, str, str]]:
    """Return path, code and message of each problem of a training that is otherwise valid."""
    pairs = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    data = {"preferences": pairs} if kind == "dpo" else {"prompts": ["x"]}
    rewards = {"rewards": [{"name": "json"}]} if kind in {"ppo", "grpo"} else {}
    found = check_spec(task_type(kind).model, {"data": data, "training": training, **rewards, **blocks}).problems
    return [(".".join(map(str, problem.path)), problem.code, problem.message) for problem in found]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [-1, 4294967296, "-1", "4294967296"])
def test_a_seed_that_numpy_does_not_take(kind: str, seed: Any) -> None:
    message = "seed must be a whole number from 0 to 4294967295"
    assert problems_of(kind, {"seed": seed}) == [("training.seed", "out-of-range", message)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 4294967295, "7", None])
def test_a_seed_that_numpy_takes(kind: str, seed: Any) -> None:
    assert problems_of(kind, {"seed": seed}) == []


def test_every_bound_is_of_an_option_that_is_passed_on() -> None:
    assert set(BOUNDS) <= {name for kind in KINDS for name in passed_on(kind)}


@pytest.mark.parametrize(
    ("kind", "name", "inside", "outside", "wanted"),
    [
        ("sft", "adam_beta1", [0, "0.99"], [-0.1, 1, "1.5"], "must be a number, at least 0 and less than 1"),
        ("sft", "dataloader_num_workers", [0, 4], [-1, "-2"], "must be a whole number, at least 0"),
        ("dpo", "ld_alpha", [0, 1, 0.5], [-0.5, 1.01], "must be a number from 0 to 1"),
        ("dpo", "ref_model_sync_steps", [1], [0], "must be a whole number, at least 1"),
        ("grpo", "num_iterations", [1, 2], [0], "must be a whole number, at least 1"),
        ("grpo", "top_entropy_quantile", [0.2, 1], [2], "must be a number from 0 to 1"),
        ("ppo", "adam_epsilon", [0, 1e-8], [-1e-8], "must be a number, at least 0"),
    ],
)
def test_bounds(kind: str, name: str, inside: list[Any], outside: list[Any], wanted: str) -> None:
    for value in (*inside, "${tune.result.value}"):
        assert problems_of(kind, {name: value}) == [], value
    for value in outside:
        assert problems_of(kind, {name: value}) == [(f"training.{name}", "out-of-range", f"{name} {wanted}")], value


@pytest.mark.parametrize(
    ("kind", "clash", "more", "message"),
    [
        ("sft", {"dataloader_persistent_workers": True}, {"dataloader_num_workers": 1},
         "dataloader_persistent_workers needs dataloader_num_workers above 0"),
        ("grpo", {"dataloader_prefetch_factor": 2}, {"dataloader_num_workers": "1"},
         "dataloader_prefetch_factor needs dataloader_num_workers above 0"),
        ("dpo", {"dataloader_multiprocessing_context": "spawn"}, {"dataloader_num_workers": 1},
         "dataloader_multiprocessing_context needs dataloader_num_workers above 0"),
        ("sft", {"lr_scheduler_type": "greedy"}, {"lr_scheduler_type": "linear"},
         "lr_scheduler_type 'greedy' is not possible here: no rows are held out to measure"),
        ("sft", {"lr_scheduler_type": "cosine_with_min_lr"}, {"lr_scheduler_kwargs": {"min_lr": 0}},
         "lr_scheduler_type 'cosine_with_min_lr' needs either min_lr or min_lr_rate in lr_scheduler_kwargs"),
        ("dpo", {"lr_scheduler_type": "warmup_stable_decay"}, {"lr_scheduler_kwargs": {"num_decay_steps": 1}},
         "lr_scheduler_type 'warmup_stable_decay' needs num_decay_steps in lr_scheduler_kwargs"),
        ("lora_sft", {"optim": "galore_adamw"}, {"optim_target_modules": ["attn"]},
         "optim 'galore_adamw' needs optim_target_modules"),
        ("sft", {"padding_free": True}, {"packing": True},
         "padding_free needs packing: rows are not cut to max_seq_length without it"),
        ("sft", {"label_smoothing_factor": 0.1}, {"loss_type": "nll"},
         "label_smoothing_factor needs loss_type nll: the default loss of TRL computes no logits"),
        ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, {"loss_weights": [1.0, 0.5]},
         "loss_weights has 1 numbers for 2 losses in loss_type"),
        ("dpo", {"loss_type": "exo_pair"}, {"label_smoothing": 0.1},
         "loss_type 'exo_pair' needs label_smoothing above 0"),
        ("dpo", {"loss_type": "hinge", "f_divergence_type": "js_divergence", "use_weighting": True},
         {"use_weighting": False}, None),
        ("dpo", {"loss_type": "aot", "f_divergence_type": "js_divergence"}, {"f_divergence_type": "reverse_kl"},
         "f_divergence_type 'js_divergence' does not go with loss_type aot"),
        ("dpo", {"loss_type": "aot", "use_weighting": "yes"}, {"use_weighting": "no"},
         "use_weighting does not go with loss_type aot and aot_unpaired"),
        ("dpo", {"sync_ref_model": True, "precompute_ref_log_probs": True}, {"sync_ref_model": False},
         "sync_ref_model and precompute_ref_log_probs exclude each other"),
        ("grpo", {"auto_find_batch_size": True}, {"auto_find_batch_size": False},
         "auto_find_batch_size is not possible here: a smaller batch would split groups of answers"),
        ("grpo", {"generation_batch_size": 8, "steps_per_generation": 1}, {"steps_per_generation": None},
         "generation_batch_size and steps_per_generation exclude each other"),
        ("grpo", {"sync_ref_model": True}, {"beta": 0.1},
         "sync_ref_model needs beta above 0: without it there is no reference"),
    ],
)  # fmt: skip
def test_options_that_exclude_each_other(
    kind: str, clash: dict[str, Any], more: dict[str, Any], message: str | None
) -> None:
    found = problems_of(kind, clash)
    assert [(code, text) for _, code, text in found] == ([("trainer-refuses", message)] if message else [])
    assert all(path.removeprefix("training.") in clash for path, _, _ in found)
    assert problems_of(kind, {**clash, **more}) == []


@pytest.mark.parametrize(
    ("clash", "later"),
    [
        ({"dataloader_persistent_workers": True}, "dataloader_num_workers"),
        ({"loss_type": "exo_pair"}, "label_smoothing"),
        ({"loss_weights": [1.0, 2.0]}, "loss_type"),
    ],
)
def test_what_comes_from_an_earlier_stage_is_not_judged(clash: dict[str, Any], later: str) -> None:
    assert problems_of("dpo", {**clash, later: "${tune.result.value}"}) == []


@pytest.mark.parametrize("kind", ["dpo", "grpo"])
def test_a_synchronized_reference_needs_all_weights(kind: str) -> None:
    options = {"sync_ref_model": True, "beta": 0.1}
    message = "sync_ref_model is not possible with lora: the reference is the model without its adapters"
    assert problems_of(kind, options, lora={"r": 2}) == [("training.sync_ref_model", "trainer-refuses", message)]
    assert problems_of(kind, options) == []


def test_smoothing_that_only_sft_has_is_a_warning_elsewhere() -> None:
    message = "label_smoothing_factor has no effect: the loss of dpo is its own"
    assert problems_of("dpo", {"label_smoothing_factor": 0.1}) == [
        ("training.label_smoothing_factor", "ignored-value", message)
    ]


def test_what_the_loop_of_ppo_does_not_read_is_a_warning() -> None:
    message = "neftune_noise_alpha has no effect: TRL's PPO has a training loop of its own"
    assert problems_of("ppo", {"neftune_noise_alpha": 5, "torch_compile": False}) == [
        ("training.neftune_noise_alpha", "ignored-value", message)
    ]
    assert problems_of("grpo", {"neftune_noise_alpha": 5}) == []
    assert len([name for name in passed_on("ppo") if without_effect("ppo", name)]) > 20, "a name that TRL has no more"


@pytest.mark.parametrize("value", [True, False, "true", "group", "none", "batch"])
def test_rewards_are_scaled_by_a_word_or_a_switch(value: Any) -> None:
    assert problems_of("grpo", {"scale_rewards": value}) == []
