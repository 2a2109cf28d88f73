"""The table of training fields: complete, true to the models of the specs, and readable."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.training import trainer_arguments
from mloc_prefect.tasks.checks import check_spec
from mloc_prefect.tasks.keys import table_of
from mloc_prefect.tasks.ppo import GenerationOptions
from mloc_prefect.tasks.registry import task_type
from mloc_prefect.tasks.training import training_table as table

KINDS = table.KINDS
RATED = ("ppo", "grpo")
PLACE = trainer_arguments.ArgumentContext("out", cuda=True, world=2)


def training_model(kind: str) -> Any:
    return task_type(kind).model.model_fields["training"].default


def problems_of(kind: str, **blocks: Any) -> tuple[Any, ...]:
    """Return what planning says of a spec that is in order but for `blocks`."""
    preferences = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    spec = {"data": {"preferences": preferences} if kind == "dpo" else {"prompts": ["x"]}, **blocks}
    return check_spec(task_type(kind).model, spec | ({"rewards": [{"name": "json"}]} if kind in RATED else {})).problems


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_the_spec_has_a_cell(kind: Any) -> None:
    fields = set(type(training_model(kind)).model_fields)
    assert fields == set(table.cells(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_every_cell_names_a_field_of_trl_or_a_function_of_ours(kind: Any) -> None:
    known = table.config_fields(kind)
    for block in ("training", "generation"):
        for name, cell in table.cells(kind, block).items():
            if cell.way == "config":
                assert cell.name in known, name
            elif cell.way == "computed":
                assert cell.name in trainer_arguments._COMPUTED, name
            elif cell.way in {"unused", "refused"}:
                assert cell.reason, name


def test_generation_has_a_cell_for_each_field() -> None:
    for kind in ("ppo", "grpo"):
        assert set(table.cells(kind, "generation")) == set(GenerationOptions.model_fields)
    assert table.cells("sft", "generation") == {}


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_those_of_the_models(kind: Any) -> None:
    model = training_model(kind)
    said = {**table.SHARED_DEFAULTS, **table.DEFAULTS[kind]}
    for name, value in said.items():
        if name in {"mini_batch_size", "save_total_limit"}:  # the models leave these open
            continue
        assert getattr(model, name) == value, name
    for name, field in type(model).model_fields.items():
        if field.default not in (None, False, 0, "warn") and name in table.cells(kind):
            assert name in said or table.cells(kind)[name].way == "us" or not model.model_fields_set, name


def test_every_reason_is_used_and_every_neutral_value_is_of_a_refused_field() -> None:
    words = {word[1:] for text in (table.TRAINING, table.GENERATION) for word in text.split() if word[0] in "-!"}
    assert words == set(table.REASONS)
    refused = {name for kind in KINDS for block in ("training", "generation")
               for name, cell in table.cells(kind, block).items() if cell.way == "refused"}  # fmt: skip
    assert set(table.NEUTRAL) <= refused


def test_names_of_trl_pass_and_near_misses_are_known() -> None:
    names = table_of(type(training_model("ppo")))
    assert {"whiten_rewards", "adam_beta1", "output_dir"} <= set(names.below)
    assert "total_episodes" not in table.passed_on("ppo")
    assert "num_generations" not in table.config_fields("sft")


@pytest.mark.parametrize(
    ("kind", "training", "message"),
    [
        ("sft", {"adam_beta1": "low"}, "adam_beta1 must be a number"),
        ("sft", {"dataloader_num_workers": 1.5}, "dataloader_num_workers must be a whole number"),
        ("dpo", {"precompute_ref_log_probs": "maybe"}, "precompute_ref_log_probs must be true or false"),
        ("sft", {"fp16": True, "bf16": True}, "fp16 and bf16 exclude each other"),
        ("sft", {"fit_check": "maybe"}, "fit_check must be one of warn, error, ignore"),
        ("ppo", {"fsdp": "full_shard"}, "fsdp is not possible here: TRL's PPO trains on one process for each GPU with "
         "whole models (DDP); use lora or dpo"),
        ("ppo", {"adap_kl_ctrl": True}, "adap_kl_ctrl is not possible here: TRL has no adaptive KL coefficient; set "
         "kl_coef"),
        ("grpo", {"num_generations": 1}, "num_generations must be at least 2: answers are compared with each other"),
        ("grpo", {"batch_size": 6, "num_generations": 4},
         "batch_size x gradient_accumulation_steps = 6 is not a multiple of num_generations 4"),
        ("ppo", {"batch_size": 4, "num_mini_batches": 3},
         "batch_size 4 is not a multiple of num_mini_batches x gradient_accumulation_steps = 3"),
        ("ppo", {"per_device_train_batch_size": 2, "num_mini_batches": 3, "gradient_accumulation_steps": 2},
         "per_device_train_batch_size x gradient_accumulation_steps = 4 is not a multiple of num_mini_batches x "
         "gradient_accumulation_steps = 6"),
        ("ppo", {"batch_size": 8, "mini_batch_size": 2, "gradient_accumulation_steps": 16},
         "batch_size 8 is not a multiple of mini_batch_size x gradient_accumulation_steps = 32"),
    ],
)  # fmt: skip
def test_what_is_refused_when_planned(kind: str, training: dict[str, Any], message: str) -> None:
    spec = {"training": training, "rewards": [{"name": "json"}], "data": {"prompts": ["x"], "rows": [{}]}}
    found = check_spec(task_type(kind).model, spec).problems
    assert [p.message for p in found if p.severity == "error"] == [message]


# Each field that some trainer refuses or does not use, set to something else than TRL does anyway.
ASKED = {
    "training": {
        "mini_batch_size": 2,
        "num_mini_batches": 2,
        "max_grad_norm": 0.5,
        "logging_steps": 3,
        "target_kl": 0.1,
        "early_stopping": True,
        "adap_kl_ctrl": True,
        "gamma": 0.9,
        "lam": 0.9,
        "cliprange_value": 0.3,
        "vf_coef": 0.2,
        "fsdp": "full_shard",
        "fsdp_config": {"version": 2},
        "deepspeed": {"steps_per_print": 7},
        "auto_deepspeed": True,
        "auto_deepspeed_stage": 3,
        "zero_stage": 2,
        "visible_devices": "0,1",
        "primary_gpu": 1,
        "tracker_project_name": "mine",
    },
    "generation": {
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "do_sample": False,
        "repetition_penalty": 1.2,
        "min_new_tokens": 3,
    },
}
WITHOUT_EFFECT = [
    (kind, block, name, cell)
    for kind in KINDS
    for block in ("training", "generation")
    for name, cell in table.cells(kind, block).items()  # type: ignore[arg-type]
    if cell.way in {"refused", "unused"}
]


@pytest.mark.parametrize(("kind", "block", "name", "cell"), WITHOUT_EFFECT)
def test_what_has_no_effect_is_told_with_its_reason(kind: Any, block: str, name: str, cell: table.FieldRule) -> None:
    value = ASKED[block][name]
    assert not table.is_neutral(name, value), "TRL does that anyway"
    (found,) = problems_of(kind, **{block: {name: value}})
    assert found.path == (block, name)
    options = trainer_arguments.TrainerOptions.of(kind, SpecReader({block: {name: value}}))
    if cell.way == "refused":
        assert (found.severity, found.code) == ("error", "trainer-refuses")
        assert found.message == f"{name} is not possible here: {cell.reason}"
        with pytest.raises(UserError, match=re.escape(f"spec.{block}.{name} is not possible here: {cell.reason}")):
            trainer_arguments.config_arguments(options, PLACE)
    else:
        assert (found.severity, found.code) == ("warning", "ignored-value")
        assert found.message == f"{name} has no effect: {cell.reason}"
        plain = trainer_arguments.TrainerOptions.of(kind, SpecReader({}))
        wanted = trainer_arguments.config_arguments(plain, PLACE)
        assert trainer_arguments.config_arguments(options, PLACE) == wanted


def test_nothing_is_asked_for_that_every_trainer_has() -> None:
    for block, values in ASKED.items():
        assert set(values) == {name for _, where, name, _ in WITHOUT_EFFECT if where == block}


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ({}, "A reward needs name (of a rule) or path (of a function)"),
        ({"name": "length"}, "The reward length needs target"),
        ({"name": "length", "target": 3, "unit": "tokens"}, "Unknown unit 'tokens'"),
        ({"name": "regex"}, "The reward regex needs pattern"),
        (
            {"name": "regex", "pattern": "("},
            "pattern is not a regular expression: missing ), unterminated subpattern at position 0",
        ),
        (
            {"name": "regex", "pattern": "(" * 3000 + ")" * 3000},
            "pattern is not a regular expression: it is nested too deep",
        ),
        (
            {"name": "regex", "pattern": "a{99999999999999}"},
            "pattern is not a regular expression: a number of repetitions is too large",
        ),
        (
            {"name": "regex", "pattern": "a" * 10_001},
            "pattern is not a regular expression: it has 10001 characters, 10000 are allowed",
        ),
        ({"path": "no colon"}, "path 'no colon' is not of the form package.module:function"),
        ({"path": "my_reward.py:score"}, "path 'my_reward.py:score' names a file, and Python imports modules"),
        ({"name": "numeric", "tolerance": -1}, "tolerance must be a number, at least 0"),
    ],
)
def test_rewards_that_say_nothing(reward: dict[str, Any], message: str) -> None:
    found = check_spec(task_type("grpo").model, {"data": {"prompts": ["x"]}, "rewards": [reward]}).problems
    assert message in [p.message for p in found]


@pytest.mark.parametrize(
    ("kind", "training", "message", "fix"),
    [
        ("sft", {"lr_scheduler_type": "cosin"}, "TRL knows no lr_scheduler_type 'cosin'", "did you mean 'cosine'?"),
        ("lora_sft", {"optim": "AdamW_torch"}, "TRL knows no optim 'AdamW_torch'", "did you mean 'adamw_torch'?"),
        ("ppo", {"save_strategy": "stepz"}, "TRL knows no save_strategy 'stepz'", "did you mean 'steps'?"),
        ("dpo", {"loss_type": "hinges"}, "TRL knows no loss_type 'hinges'", "did you mean 'hinge'?"),
        ("dpo", {"loss_type": ["sigmoid", "typo"]}, "TRL knows no loss_type 'typo'", "use one of: aot, aot_unpaired, "
         "apo_down, apo_zero, bco_pair, discopop, exo_pair, hinge, ipo, nca_pair, robust, sft, sigmoid, sigmoid_norm, "
         "sppo_hard"),
        ("grpo", {"loss_type": "sigmoid"}, "TRL knows no loss_type 'sigmoid'",
         "use one of: bnpo, cispo, dapo, dr_grpo, grpo, luspo, sapo, vespo"),
        ("grpo", {"loss_type": ["grpo"]}, "TRL knows no loss_type '['grpo']'",
         "use one of: bnpo, cispo, dapo, dr_grpo, grpo, luspo, sapo, vespo"),
        ("sft", {"loss_type": "nlll"}, "TRL knows no loss_type 'nlll'", "did you mean 'nll'?"),
        ("dpo", {"truncation_mode": "keep_beginning"}, "TRL knows no truncation_mode 'keep_beginning'",
         "use one of: keep_end, keep_start"),
        ("dpo", {"f_divergence_type": "kl"}, "TRL knows no f_divergence_type 'kl'",
         "use one of: alpha_divergence, forward_kl, js_divergence, reverse_kl"),
        ("grpo", {"scale_rewards": "groups"}, "TRL knows no scale_rewards 'groups'", "did you mean 'group'?"),
        ("grpo", {"importance_sampling_level": "row"}, "TRL knows no importance_sampling_level 'row'",
         "use one of: sequence, token"),
        ("grpo", {"multi_objective_aggregation": "sum"}, "TRL knows no multi_objective_aggregation 'sum'",
         "use one of: normalize_then_sum, sum_then_normalize"),
        ("ppo", {"kl_estimator": "k2"}, "TRL knows no kl_estimator 'k2'", "use one of: k1, k3"),
        ("sft", {"packing_strategy": "ffd"}, "TRL knows no packing_strategy 'ffd'",
         "use one of: bfd, bfd_split, wrapped"),
        ("sft", {"log_level": "loud"}, "TRL knows no log_level 'loud'",
         "use one of: detail, debug, info, warning, error, critical, passive"),
        ("sft", {"logging_strategy": "never"}, "TRL knows no logging_strategy 'never'",
         "use one of: no, steps, epoch"),
        ("sft", {"train_sampling_strategy": "sorted"}, "TRL knows no train_sampling_strategy 'sorted'",
         "use one of: random, sequential, group_by_length, batch_rebalance"),
        ("sft", {"save_strategy": "best"}, "save_strategy 'best' is not possible here: no rows are held out to compare "
         "checkpoints", "use steps or epoch"),
    ],
)  # fmt: skip
def test_words_that_trl_does_not_know(kind: str, training: dict[str, Any], message: str, fix: str) -> None:
    (found,) = problems_of(kind, training=training)
    assert (found.severity, found.path[:2], found.message, found.suggestion) == (
        "error", ("training", next(iter(training))), message, fix)  # fmt: skip


# What some words need beside them.
NEEDED = {
    "dataloader_num_workers": 1,
    "label_smoothing": 0.1,
    "optim_target_modules": ["attn"],
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1, "num_decay_steps": 2},
    "loss_type": None,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_word_of_trl_and_words_that_come_later_pass(kind: Any) -> None:
    assert {"lr_scheduler_type", "optim", "save_strategy"} <= set(table.words(kind))
    assert ("loss_type" in table.words(kind)) is (kind != "ppo")
    for name, known in table.words(kind).items():
        for word in (*known, "${tune.result.word}"):
            if word not in {"best", "reduce_lr_on_plateau", "greedy"}:
                found = problems_of(kind, training={**NEEDED, name: word})
                assert [p for p in found if p.severity == "error"] == [], word
    assert problems_of(kind, training={"save_strategy": " Epoch "}) == ()


def test_a_long_list_of_words_is_cut() -> None:
    (found,) = problems_of("sft", training={"optim": "xyz"})
    assert found.suggestion.startswith("use one of: adamw_torch, ")
    assert found.suggestion.endswith(", ...")


def test_options_of_vllm_are_not_read() -> None:
    names = [name for name in table.config_fields("grpo") if "vllm" in name]
    assert {"use_vllm", "vllm_mode", "vllm_server_host"} <= set(names)
    found = problems_of("grpo", training=dict.fromkeys(names, 1))
    assert {p.path[1] for p in found} == set(names)
    assert {(p.severity, p.code) for p in found} == {("warning", "ignored-value")}
    assert not set(names) & set(table.passed_on("grpo"))


def test_a_refused_field_may_say_what_trl_does_anyway() -> None:
    generation = {"top_p": 1.0, "top_k": -1, "do_sample": True, "repetition_penalty": 1}
    spec = {"data": {"prompts": ["x"]}, "rewards": [{"name": "json"}], "generation": generation}
    assert check_spec(task_type("ppo").model, spec).problems == ()
