"""Each row of the table of training fields, set to a value that shows in TRL's own config object."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.training.trainer_arguments import (
    ArgumentContext,
    TrainerOptions,
    config_arguments,
    lora_arguments,
)
from mloc_prefect.tasks.checks import check_spec
from mloc_prefect.tasks.registry import task_type
from mloc_prefect.tasks.training import trl_fields_ppo
from mloc_prefect.tasks.training.training_table import KINDS, cells, config_fields, lora_fields, passed_on

ROOT = Path(__file__).parents[2]

# field -> (value in the spec, attribute of the config, value there); for single kinds below.
SHARED: dict[str, tuple[Any, str, Any]] = {
    "learning_rate": ("3e-7", "learning_rate", 3e-7),
    "num_train_epochs": (2.5, "num_train_epochs", 2.5),
    "max_steps": (7, "max_steps", 7),
    "steps": (8, "max_steps", 8),
    "batch_size": (24, "per_device_train_batch_size", 24),
    "per_device_train_batch_size": (16, "per_device_train_batch_size", 16),
    "gradient_accumulation_steps": (3, "gradient_accumulation_steps", 3),
    "warmup_steps": (5, "warmup_steps", 5),
    "warmup_ratio": (0.25, "warmup_steps", 0.25),
    "weight_decay": (0.01, "weight_decay", 0.01),
    "max_grad_norm": (0.5, "max_grad_norm", 0.5),
    "lr_scheduler_type": ("cosine", "lr_scheduler_type", "cosine"),
    "optim": ("sgd", "optim", "sgd"),
    "logging_steps": (3, "logging_steps", 3),
    "save_steps": (11, "save_steps", 11),
    "save_freq": (12, "save_steps", 12),
    "save_strategy": ("no", "save_strategy", "no"),
    "save_total_limit": (5, "save_total_limit", 5),
    "max_seq_length": (77, "max_length", 77),
    "max_length": (78, "max_length", 78),
    "packing": (True, "packing", True),
    "seed": (9, "data_seed", 9),
    "fp16": (False, "fp16", False),
    "bf16": (True, "bf16", True),
    "gradient_checkpointing": (True, "gradient_checkpointing", True),
    "beta": (0.33, "beta", 0.33),
    "label_smoothing": (0.1, "label_smoothing", 0.1),
    "loss_type": ("ipo", "loss_type", ["ipo"]),
    "num_ppo_epochs": (6, "num_ppo_epochs", 6),
    "ppo_epochs": (5, "num_ppo_epochs", 5),
    "kl_coef": (0.21, "kl_coef", 0.21),
    "init_kl_coef": (0.22, "kl_coef", 0.22),
    "gamma": (0.9, "gamma", 0.9),
    "lam": (0.8, "lam", 0.8),
    "cliprange": (0.3, "cliprange", 0.3),
    "cliprange_value": (0.4, "cliprange_value", 0.4),
    "vf_coef": (0.5, "vf_coef", 0.5),
    "num_generations": (2, "num_generations", 2),
    "optimize_cuda_cache": (True, "torch_empty_cache_steps", 1),
}
OWN: dict[str, dict[str, tuple[Any, str, Any]]] = {
    "ppo": {
        "max_steps": (7, "total_episodes", 28),
        "steps": (8, "total_episodes", 32),
        "batch_size": (12, "per_device_train_batch_size", 12),
        "per_device_train_batch_size": (6, "per_device_train_batch_size", 6),
        "mini_batch_size": (2, "num_mini_batches", 2),
        "num_mini_batches": (2, "num_mini_batches", 2),
        "gradient_accumulation_steps": (2, "gradient_accumulation_steps", 2),
    },
    "grpo": {
        "ppo_epochs": (5, "num_iterations", 5),
        "num_ppo_epochs": (6, "num_iterations", 6),
        "kl_coef": (0.21, "beta", 0.21),
        "init_kl_coef": (0.22, "beta", 0.22),
        "cliprange": (0.3, "epsilon", 0.3),
        "loss_type": ("bnpo", "loss_type", "bnpo"),
        "gradient_accumulation_steps": (2, "gradient_accumulation_steps", 2),
    },
}
GENERATION: dict[str, dict[str, tuple[Any, str, Any]]] = {
    "ppo": {
        "max_new_tokens": (9, "response_length", 9),
        "temperature": (0.4, "temperature", 0.4),
        "stop": ("#", "stop_token_id", 7),
    },
    "grpo": {
        "max_new_tokens": (9, "max_completion_length", 9),
        "temperature": (0.4, "temperature", 0.4),
        "top_p": (0.8, "top_p", 0.8),
        "top_k": (12, "top_k", 12),
        "min_p": (0.1, "min_p", 0.1),
        "repetition_penalty": (1.2, "repetition_penalty", 1.2),
        "min_new_tokens": (3, "generation_kwargs", {"min_new_tokens": 3}),
        "stop": (["#"], "generation_kwargs", {"eos_token_id": [1, 7]}),
    },
}
ON_GPUS = {"fsdp", "fsdp_config", "deepspeed", "auto_deepspeed", "auto_deepspeed_stage", "zero_stage"}
"""Rows that only a GPU shows; their arguments are tested without one."""


def config_of(kind: Any, **spec: Any) -> Any:
    """Return TRL's config object for a spec."""
    from trl import DPOConfig, GRPOConfig, SFTConfig
    from trl.experimental.ppo import PPOConfig

    classes = {"dpo": DPOConfig, "ppo": PPOConfig, "grpo": GRPOConfig}
    place = ArgumentContext("out", token_of={"#": 7}.get, end=1)
    return classes.get(kind, SFTConfig)(**config_arguments(TrainerOptions.of(kind, SpecReader(spec)), place))


def rows(kind: Any) -> dict[str, tuple[Any, str, Any]]:
    return {**SHARED, **OWN.get(kind, {})}


CASES = [
    (kind, "training", name)
    for kind in KINDS
    for name, cell in cells(kind).items()
    if cell.way in {"config", "computed"} and name not in ON_GPUS
] + [
    (kind, "generation", name)
    for kind in ("ppo", "grpo")
    for name, cell in cells(kind, "generation").items()  # type: ignore[arg-type]
    if cell.way in {"config", "computed"}
]


@pytest.mark.parametrize(("kind", "block", "name"), CASES)
def test_the_value_shows(kind: str, block: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    value, attribute, wanted = (rows(kind) if block == "training" else GENERATION[kind])[name]
    without = getattr(config_of(kind), attribute)
    found = getattr(config_of(kind, **{block: {name: value}}), attribute)
    assert getattr(found, "value", found) == wanted
    if name != "fp16" and not (kind == "sft" and name == "gradient_checkpointing"):
        assert without != found, "the default would pass for it"


@pytest.mark.parametrize(("kind", "block", "name"), CASES)
def test_planning_takes_what_the_executor_takes(kind: str, block: str, name: str) -> None:
    value = (rows(kind) if block == "training" else GENERATION[kind])[name][0]
    data = {"preferences": [{"prompt": "a", "chosen": "b", "rejected": "c"}]} if kind == "dpo" else {"prompts": ["a"]}
    rewards = {"rewards": [{"name": "json"}]} if kind in {"ppo", "grpo"} else {}
    found = check_spec(task_type(kind).model, {"data": data, **rewards, block: {name: value}}).problems
    assert found == ()


def test_both_seeds() -> None:
    config = config_of("sft", training={"seed": 9})
    assert (config.seed, config.data_seed) == (9, 9)


@pytest.mark.parametrize("kind", KINDS)
def test_other_names_of_trl_are_passed_on(kind: Any) -> None:
    values = {"adam_beta1": ("0.7", 0.7), "dataloader_num_workers": ("2", 2), "full_determinism": ("no", False)}
    assert set(values) <= set(passed_on(kind))
    config = config_of(kind, training={name: written for name, (written, _) in values.items()})
    assert {name: getattr(config, name) for name in values} == {name: read for name, (_, read) in values.items()}


def test_lora_rows() -> None:
    from peft import LoraConfig

    values = {
        "r": (3, 3),
        "alpha": (7, 7),
        "dropout": (0.2, 0.2),
        "bias": ("lora_only", "lora_only"),
        "target_modules": (["a", "b"], {"a", "b"}),
        "task_type": ("seq_cls", "SEQ_CLS"),
        "use_rslora": (True, True),
    }
    assert set(values) == set(lora_fields())
    for field, (written, wanted) in values.items():
        config = LoraConfig(**lora_arguments(SpecReader({field: written})))
        assert getattr(config, lora_fields()[field]) == wanted, field


def test_the_shipped_names_are_those_of_the_installed_trl() -> None:
    path = ROOT / "docs" / "trl_fields.py"
    spec = importlib.util.spec_from_file_location("make_trl_fields", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.text() == Path(trl_fields_ppo.__file__).read_text(), "run: python docs/trl_fields.py"
    assert "learning_rate" in config_fields("ppo")
