"""From a spec to the arguments of TRL's config classes, without TRL."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.sources.source_lookup import SourceLookup
from mloc_prefect.executors.training.ranks.launch import world_of
from mloc_prefect.executors.training.trainer_arguments import (
    ArgumentContext,
    TrainerOptions,
    config_arguments,
    lora_arguments,
    rollout_sizes,
    with_files,
)
from mloc_prefect.tasks.checks import check_spec
from mloc_prefect.tasks.registry import task_type
from mloc_prefect.tasks.training.training_table import KINDS, cells


def arguments(kind: Any, place: ArgumentContext | None = None, **spec: Any) -> dict[str, Any]:
    options = TrainerOptions.of(kind, SpecReader(spec))
    found = config_arguments(options, place or ArgumentContext("out"))
    return {**found, "notes": options.notes} if options.notes else found


def test_the_defaults_of_mloc_and_not_those_of_trl() -> None:
    found = arguments("sft")
    wanted = {
        "learning_rate": 5e-5,
        "per_device_train_batch_size": 2,
        "num_train_epochs": 1.0,
        "gradient_checkpointing": True,
        "bf16": False,
        "max_length": 1024,
        "save_steps": 100,
        "save_total_limit": 2,
        "logging_steps": 10.0,
        "output_dir": "out",
        "use_cpu": True,
    }
    assert {name: found[name] for name in wanted} == wanted
    assert "max_steps" not in found
    assert arguments("lora_sft")["learning_rate"] == 2e-4
    assert arguments("dpo")["save_steps"] == 500
    assert arguments("dpo")["learning_rate"] == 5e-7
    assert arguments("grpo")["num_generations"] == 8


@pytest.mark.parametrize(
    ("kind", "training", "wanted"),
    [
        ("sft", {"learning_rate": "5e-7"}, {"learning_rate": 5e-7}),
        ("sft", {"steps": 7, "max_steps": 9}, {"max_steps": 7}),
        ("sft", {"max_steps": -1}, {}),
        ("sft", {"per_device_train_batch_size": 3}, {"per_device_train_batch_size": 3}),
        ("sft", {"warmup_ratio": 0.1}, {"warmup_steps": 0.1}),
        ("sft", {"warmup_steps": 4, "warmup_ratio": 0.1}, {"warmup_steps": 4}),
        ("sft", {"save_freq": 5}, {"save_steps": 5}),
        ("dpo", {"save_steps": 5}, {"save_steps": 5}),
        ("sft", {"save_strategy": "NO"}, {"save_strategy": "no"}),
        ("sft", {"save_total_limit": 1}, {"save_total_limit": 2}),
        ("sft", {"save_total_limit": 7}, {"save_total_limit": 7}),
        ("sft", {"seed": "7"}, {"seed": 7, "data_seed": 7}),
        ("sft", {"packing": "yes"}, {"packing": True}),
        ("sft", {"adam_beta1": "0.8", "group_by": 1}, {"adam_beta1": 0.8}),
        ("dpo", {"max_length": 64, "max_seq_length": 32}, {"max_length": 64}),
        ("dpo", {"loss_type": "ipo", "beta": 0.3}, {"loss_type": ["ipo"], "beta": 0.3}),
        ("grpo", {"ppo_epochs": 3, "kl_coef": 0.2, "cliprange": 0.3},
         {"num_iterations": 3, "beta": 0.2, "epsilon": 0.3}),
        ("ppo", {"ppo_epochs": 3, "init_kl_coef": 0.2}, {"num_ppo_epochs": 3, "kl_coef": 0.2}),
        ("sft", {"output_dir": "/etc"}, {"output_dir": "out"}),
    ],
)  # fmt: skip
def test_fields_that_are_set(kind: str, training: dict[str, Any], wanted: dict[str, Any]) -> None:
    found = arguments(kind, training=training)
    assert {name: found.get(name) for name in wanted} == wanted
    assert "group_by" not in found


BATCHES = [
    ({}, (4, 4, 1)),  # MLOC's defaults: four answers, each a mini-batch
    ({"batch_size": 4, "mini_batch_size": 1, "gradient_accumulation_steps": 4}, (4, 4, 4)),  # as in its examples
    ({"batch_size": 8, "mini_batch_size": 4}, (8, 2, 1)),
    ({"batch_size": 8, "num_mini_batches": 2, "gradient_accumulation_steps": 2}, (8, 4, 2)),
    ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "mini_batch_size": 2}, (6, 3, 3)),
    ({"per_device_train_batch_size": 8, "mini_batch_size": 8}, (8, 1, 1)),
    ({"per_device_train_batch_size": 8, "batch_size": None, "mini_batch_size": "8"}, (8, 1, 1)),
    ({"per_device_train_batch_size": 3, "batch_size": 8, "mini_batch_size": 8}, (8, 1, 1)),
    ({"batch_size": 6, "mini_batch_size": 5, "num_mini_batches": 2}, (6, 2, 1)),
    ({"batch_size": 6, "mini_batch_size": 3, "num_mini_batches": None}, (6, 2, 1)),
]


def planned(kind: str, training: dict[str, Any], **more: Any) -> list[str]:
    """Return the errors of planning."""
    spec = {"data": {"prompts": ["x"]}, "rewards": [{"name": "json"}], "training": training, **more}
    return [p.message for p in check_spec(task_type(kind).model, spec).problems if p.severity == "error"]


@pytest.mark.parametrize(("training", "sizes"), BATCHES)
def test_batches_of_ppo(training: dict[str, Any], sizes: tuple[int, int, int]) -> None:
    options = TrainerOptions.of("ppo", SpecReader({"training": training}))
    assert rollout_sizes(options) == sizes
    assert planned("ppo", training) == []
    found = config_arguments(options, ArgumentContext("out"))
    batch, parts, steps = sizes
    # What TRL makes of it: answers of a batch, and slices that go through the model at once.
    assert found["per_device_train_batch_size"] * found["gradient_accumulation_steps"] == batch
    assert batch // found["num_mini_batches"] == batch // parts <= found["per_device_train_batch_size"]
    assert parts % steps == 0


@pytest.mark.parametrize(
    ("training", "sizes", "message"),
    [
        ({"mini_batch_size": 3}, (4, 2, 1), "mini_batch_size 3 does not divide 4 answers; mini-batches of 2 are used"),
        ({"mini_batch_size": 9}, (4, 1, 1), "mini_batch_size 9 does not divide 4 answers; mini-batches of 4 are used"),
        ({"batch_size": 12, "mini_batch_size": 5, "gradient_accumulation_steps": 3}, (12, 3, 3),
         "mini_batch_size 5 does not divide 12 answers; mini-batches of 4 are used"),
        ({"per_device_train_batch_size": 2, "mini_batch_size": 3, "gradient_accumulation_steps": 2}, (4, 2, 2),
         "mini_batch_size 3 does not divide 4 answers; mini-batches of 2 are used"),
    ],
)  # fmt: skip
def test_a_mini_batch_that_does_not_divide_is_a_warning_that_says_what_is_used(
    training: dict[str, Any], sizes: tuple[int, int, int], message: str
) -> None:
    spec = {"data": {"prompts": ["x"]}, "rewards": [{"name": "json"}], "training": training}
    (found,) = check_spec(task_type("ppo").model, spec).problems
    assert (found.severity, found.path, found.message) == ("warning", ("training", "mini_batch_size"), message)
    options = TrainerOptions.of("ppo", SpecReader({"training": training}))
    assert rollout_sizes(options) == rollout_sizes(options) == sizes
    assert options.notes == [f"training.{message}"]


def test_planning_and_executor_refuse_the_same_batches() -> None:
    choices = (None, 1, 2, 3, 4)
    names = ("batch_size", "per_device_train_batch_size", "gradient_accumulation_steps", "mini_batch_size",
             "num_mini_batches")  # fmt: skip
    refused = 0
    for values in itertools.product(choices, repeat=len(names)):
        training = dict(zip(names, values, strict=True))
        told = planned("ppo", training)
        try:
            rollout_sizes(TrainerOptions.of("ppo", SpecReader({"training": training})))
        except UserError as error:
            refused += 1
            assert len(told) == 1, training
            assert told[0] in str(error)
        else:
            assert told == [], training
    assert 0 < refused < len(choices) ** len(names)


@pytest.mark.parametrize(
    ("training", "gpus", "answers"),
    [
        ({}, 0, "batch_size x gradient_accumulation_steps = 4"),
        ({}, 2, None),
        ({"nproc_per_node": 2}, 0, None),
        ({"nproc_per_node": 1}, 2, "batch_size x gradient_accumulation_steps = 4"),
        ({"allow_multi_gpu": False}, 2, "batch_size x gradient_accumulation_steps = 4"),
        ({}, 3, "batch_size x gradient_accumulation_steps x 3 processes = 12"),
        ({"steps_per_generation": 2}, 0, None),
        ({"per_device_train_batch_size": 8}, 0, None),
    ],
)
def test_groups_of_grpo_are_those_of_all_processes(training: dict[str, Any], gpus: int, answers: str | None) -> None:
    sizes = {"batch_size": 4, "num_generations": 8, **training}
    hardware = {"cpu": "1", "memory": "1Gi", "gpu": {"count": gpus, "type": "any"}}
    found = planned("grpo", sizes, resources={"replicas": 1, "hardware": hardware})
    assert found == ([f"{answers} is not a multiple of num_generations 8"] if answers else [])


@pytest.mark.parametrize("name", ["batch_size", "per_device_train_batch_size", "gradient_accumulation_steps"])
def test_batches_that_come_from_an_earlier_stage_are_not_judged_by_their_defaults(name: str) -> None:
    later = {name: "${tune.result.size}"}
    assert planned("ppo", {"num_mini_batches": 3, **later}) == []
    assert planned("grpo", {"num_generations": 3, **later}) == []
    assert len(planned("ppo", {"num_mini_batches": 3})) == len(planned("grpo", {"num_generations": 3})) == 1


def test_steps_of_ppo_count_answers_of_all_processes() -> None:
    found = arguments(
        "ppo", ArgumentContext("out", world=2), training={"steps": 5, "batch_size": 8, "mini_batch_size": 8}
    )
    assert found["total_episodes"] == 80
    assert "total_episodes" not in arguments("ppo")


def test_precision_and_sharding_without_a_gpu() -> None:
    found = arguments("sft", training={"fp16": True, "fsdp": "full_shard"})
    assert (found["fp16"], found["bf16"], "fsdp" in found) == (False, False, False)
    assert len(found["notes"]) == 2
    sharded = {"fp16": True, "fsdp": ["full_shard", "auto_wrap"], "fsdp_config": {"version": 2}}
    on_gpu = arguments("sft", ArgumentContext("out", cuda=True), training=sharded)
    assert (on_gpu["fp16"], on_gpu["use_cpu"]) == (True, False)
    assert (on_gpu["fsdp"], on_gpu["fsdp_config"]) == ("full_shard auto_wrap", {"version": 2})


def test_each_leased_gpu_has_a_process_unless_the_spec_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def processes(**training: Any) -> int:
        return world_of(SpecReader({"training": training}))

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    assert [processes(), processes(allow_multi_gpu=False), processes(nproc_per_node=1)] == [2, 1, 1]
    with pytest.raises(UserError, match="nproc_per_node 3 is more than the 2 GPUs of the lease"):
        processes(nproc_per_node=3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [processes(), processes(nproc_per_node=2)] == [1, 2]


def test_deepspeed_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="pip install deepspeed"):
        arguments("sft", ArgumentContext("out", cuda=True), training={"zero_stage": 2})
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object())
    found = arguments("sft", ArgumentContext("out", cuda=True), training={"zero_stage": 3})
    assert found["deepspeed"]["zero_optimization"] == {"stage": 3}


@pytest.mark.parametrize(
    ("training", "place", "stage"),
    [
        ({}, ArgumentContext("out", cuda=True, world=2), 2),
        ({"auto_deepspeed_stage": 3}, ArgumentContext("out", cuda=True, world=2), 3),
        ({"fsdp": "full_shard"}, ArgumentContext("out", cuda=True, world=2), None),
        ({"auto_deepspeed": False}, ArgumentContext("out", cuda=True, world=2), None),
        ({}, ArgumentContext("out", cuda=True), None),
        ({}, ArgumentContext("out", world=2), None),
    ],
)
def test_deepspeed_by_itself(
    training: dict[str, Any], place: ArgumentContext, stage: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in MLOC: for several GPUs only, and only where it is installed."""
    wanted = {"auto_deepspeed": True, **training}
    assert "deepspeed" not in arguments("sft", place, training=wanted)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object())
    found = arguments("sft", place, training=wanted)
    assert (found["deepspeed"]["zero_optimization"]["stage"] if "deepspeed" in found else None) == stage


def test_deepspeed_is_used_only_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object())
    assert "deepspeed" not in arguments("sft", ArgumentContext("out", cuda=True, world=2), training={})


SHARDING = {
    "fsdp": ({"fsdp": True}, {"fsdp": "full_shard auto_wrap"}),
    "fsdp_config": (
        {"fsdp": "shard_grad_op", "fsdp_config": {"min_num_params": 7}},
        {"fsdp": "shard_grad_op", "fsdp_config": {"min_num_params": 7}},
    ),
    "deepspeed": ({"deepspeed": {"steps_per_print": 7}}, {"deepspeed": {"steps_per_print": 7}}),
    "zero_stage": ({"zero_stage": "3"}, {"deepspeed": {"zero_optimization": {"stage": 3}}}),
    "auto_deepspeed": ({"auto_deepspeed": True}, {"deepspeed": {"zero_optimization": {"stage": 2}}}),
    "auto_deepspeed_stage": (
        {"auto_deepspeed": True, "auto_deepspeed_stage": 1},
        {"deepspeed": {"zero_optimization": {"stage": 1}}},
    ),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in KINDS for name, cell in cells(kind).items() if cell.name == "sharding"],
)
def test_sharding(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object())
    training, wanted = SHARDING[name]
    place = ArgumentContext("out", cuda=True, world=2)
    found, plain = arguments(kind, place, training=training), arguments(kind, place)
    if isinstance(found.get("deepspeed"), dict):  # the rest is for transformers to fill in
        found["deepspeed"] = {key: value for key, value in found["deepspeed"].items() if value != "auto"}
    assert found == {**plain, **wanted}
    assert not {"deepspeed", "fsdp", "fsdp_config"} & set(plain)


def test_a_file_of_deepspeed_lies_beside_the_spec(tmp_path: Path) -> None:
    places = SourceLookup.of({"home": "/x", "base_dir": str(tmp_path)})
    (tmp_path / "ds.json").write_text("{}")
    assert with_files({"deepspeed": "ds.json", "seed": 1}, places) == {"deepspeed": f"{tmp_path}/ds.json", "seed": 1}
    for left in ({"seed": 1}, {"deepspeed": {"steps_per_print": 7}}):
        assert with_files(left, places) == left
    with pytest.raises(UserError, match=re.escape(f"spec.training.deepspeed: there is no file {tmp_path}/other.json")):
        with_files({"deepspeed": "other.json"}, places)
    with pytest.raises(UserError, match="must be a mapping or the path of a JSON file, found True"):
        with_files({"deepspeed": True}, places)


def test_generation() -> None:
    place = ArgumentContext("out", token_of={"#": 7, "\n": 8}.get, end=1)
    wishes = {"max_new_tokens": 9, "temperature": 0.5, "top_p": 0.9, "min_new_tokens": 2, "stop": ["#", "\n"]}
    found = arguments("grpo", place, generation=wishes)
    assert (found["max_completion_length"], found["temperature"], found["top_p"]) == (9, 0.5, 0.9)
    assert found["generation_kwargs"] == {"min_new_tokens": 2, "eos_token_id": [1, 7, 8]}
    assert arguments("ppo", place, generation={"max_new_tokens": 9})["response_length"] == 9
    assert arguments("ppo", place)["stop_token"] == "eos"
    assert arguments("ppo", place, generation={"stop": "#"})["stop_token_id"] == 7


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("ppo", {"generation": {"do_sample": False}}, "spec.generation.do_sample is not possible here"),
        ("ppo", {"generation": {"stop": ["#", "\n"]}}, "PPO in TRL stops at one token"),
        ("grpo", {"generation": {"stop": "two words"}}, "'two words' is more than one token of this model"),
        ("ppo", {"training": {"batch_size": 5, "num_mini_batches": 2}}, "batch_size 5 is not a multiple of"),
        ("sft", {"training": {"batch_size": 0}}, "spec.training.batch_size must be a whole number >= 1"),
        ("sft", {"training": {"dataloader_num_workers": 1.5}}, "must be a whole number"),
        ("sft", {"training": {"completion_only_loss": "maybe"}}, "must be true or false"),
    ],
)
def test_what_is_refused_at_the_start(kind: str, spec: dict[str, Any], message: str) -> None:
    place = ArgumentContext("out", token_of={"#": 7, "\n": 8}.get)
    with pytest.raises(UserError, match=re.escape(message)):
        arguments(kind, place, **spec)


def test_lora() -> None:
    assert lora_arguments(SpecReader({})) == {
        "r": 16,
        "lora_alpha": 32.0,
        "lora_dropout": 0.05,
        "bias": "none",
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "task_type": "CAUSAL_LM",
        "use_rslora": False,
    }
    given = {"r": "4", "alpha": 8, "dropout": 0, "bias": "all", "target_modules": ["all-linear"], "use_rslora": "yes"}
    found = lora_arguments(SpecReader(given))
    assert (found["r"], found["lora_alpha"], found["lora_dropout"], found["bias"]) == (4, 8, 0, "all")
    assert (found["target_modules"], found["use_rslora"]) == ("all-linear", True)
    with pytest.raises(UserError, match="must be a list of module names"):
        lora_arguments(SpecReader({"target_modules": "q_proj"}))


def test_options_that_need_a_gpu_are_refused_before_the_model_is_loaded() -> None:
    asked = {"activation_offloading": True}
    with pytest.raises(UserError, match=re.escape("spec.training.activation_offloading needs a GPU")):
        arguments("sft", training=asked)
    assert arguments("sft", ArgumentContext("out", cuda=True), training=asked)["activation_offloading"] is True


@pytest.mark.parametrize(("written", "read"), [(True, "group"), (False, "none"), ("true", "group"), ("batch", "batch")])
def test_a_switch_of_earlier_versions_becomes_its_word(written: Any, read: str) -> None:
    assert arguments("grpo", training={"scale_rewards": written})["scale_rewards"] == read
