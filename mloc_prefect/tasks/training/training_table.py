"""What each training field of a spec becomes in TRL 1.12, for every trainer: one table for planning and executors.

A cell is one of

=          the field of the same name in TRL's config
name       the field of that name
*name      computed together with other fields, by `executors/training/trainer_arguments.py`
us         handled by us, not by TRL
-reason    without effect; setting it gives a warning
!reason    refused, unless it is set to what TRL does anyway
.          not a field of this task type

Reasons are keys of `REASONS`. Standard library only, because executor environments may lack our dependencies.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from mloc_prefect.tasks.training import trl_fields, trl_fields_ppo

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["sft", "lora_sft", "dpo", "ppo", "grpo"]
KINDS: tuple[Kind, ...] = ("sft", "lora_sft", "dpo", "ppo", "grpo")

TRAINING = """
field                        sft+lora_sft  dpo         ppo             grpo
learning_rate                =             =           =               =
num_train_epochs             =             =           =               =
max_steps                    *steps        *steps      *episodes       *steps
steps                        *steps        *steps      *episodes       *steps
batch_size                   *batch        *batch      *rollout        *batch
per_device_train_batch_size  *batch        *batch      *rollout        *batch
mini_batch_size              .             .           *rollout        -minibatch
num_mini_batches             .             .           *rollout        -minibatch
gradient_accumulation_steps  =             =           *rollout        =
warmup_steps                 *warmup       *warmup     *warmup         *warmup
warmup_ratio                 *warmup       *warmup     *warmup         *warmup
weight_decay                 =             =           =               =
max_grad_norm                =             =           -clip           =
lr_scheduler_type            =             =           =               =
optim                        =             =           =               =
logging_steps                =             =           -every-step     =
save_steps                   *saving       *saving     *saving         *saving
save_freq                    *saving       *saving     *saving         *saving
save_strategy                *saving       *saving     *saving         *saving
save_total_limit             *saving       *saving     *saving         *saving
save_model                   us            us          us              us
save_archive                 us            us          us              us
fit_check                    us            us          us              us
max_seq_length               max_length    *length     us              us
max_length                   .             *length     .               .
max_prompt_length            .             us          us              us
packing                      =             .           .               .
seed                         *seed         *seed       *seed           *seed
fp16                         *precision    *precision  *precision      *precision
bf16                         *precision    *precision  *precision      *precision
gradient_checkpointing       =             =           us              =
beta                         .             =           .               =
label_smoothing              .             =           .               .
loss_type                    .             =           .               =
ppo_epochs                   .             .           num_ppo_epochs  num_iterations
num_ppo_epochs               .             .           =               num_iterations
kl_coef                      .             .           =               beta
init_kl_coef                 .             .           kl_coef         beta
target_kl                    .             .           us              -target-kl
early_stopping               .             .           us              -target-kl
adap_kl_ctrl                 .             .           !adaptive       !adaptive
gamma                        .             .           =               -critic
lam                          .             .           =               -critic
cliprange                    .             .           =               epsilon
cliprange_value              .             .           =               -critic
vf_coef                      .             .           =               -critic
num_generations              .             .           .               =
optimize_cuda_cache          .             .           *cache          *cache
fsdp                         *sharding     *sharding   !ppo-sharding   *sharding
fsdp_config                  *sharding     *sharding   !ppo-sharding   *sharding
deepspeed                    *sharding     *sharding   !ppo-sharding   *sharding
auto_deepspeed               *sharding     *sharding   -ppo-sharding   *sharding
auto_deepspeed_stage         *sharding     *sharding   -ppo-sharding   *sharding
zero_stage                   *sharding     *sharding   !ppo-sharding   *sharding
resume_from_path             us            us          us              us
visible_devices              -lease        -lease      -lease          -lease
primary_gpu                  -lease        -lease      -lease          -lease
allow_multi_gpu              us            us          us              us
nproc_per_node               us            us          us              us
log_with                     us            us          us              us
tracker_project_name         -tracker      -tracker    -tracker        -tracker
"""

GENERATION = """
field               ppo              grpo
max_new_tokens      response_length  max_completion_length
temperature         =                =
top_p               !sampling        =
top_k               !sampling        =
min_p               !sampling        =
do_sample           !greedy          !greedy
repetition_penalty  !sampling        =
min_new_tokens      !sampling        *generation
stop                *stop            *stop
"""

LORA = """
field           peft.LoraConfig
r               r
alpha           lora_alpha
dropout         lora_dropout
bias            bias
target_modules  target_modules
task_type       task_type
use_rslora      use_rslora
"""

NEUTRAL: dict[str, Any] = {
    "adap_kl_ctrl": False,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "do_sample": True,
    "repetition_penalty": 1.0,
    "min_new_tokens": 0,
    "fsdp_config": {},
}
"""Values that a refused field may have, because TRL behaves so anyway."""

REASONS = {
    "minibatch": "GRPO has no mini-batches; use gradient_accumulation_steps",
    "clip": "TRL's PPO does not clip gradients",
    "every-step": "PPO logs every step",
    "target-kl": "GRPO does not stop at a divergence; use beta, which holds the model near where it started",
    "adaptive": "TRL has no adaptive KL coefficient; set kl_coef",
    "critic": "GRPO has no value model",
    "ppo-sharding": "TRL's PPO trains on one process for each GPU with whole models (DDP); use lora or dpo",
    "lease": "the lease decides which GPUs a stage sees; ask for them in resources.hardware.gpu",
    "tracker": "TensorBoard files know no project",
    "sampling": "PPO in TRL samples from the whole distribution (top_p 1, top_k 0); set the temperature instead",
    "greedy": "reinforcement learning needs sampled answers; set the temperature instead",
}

REPLACED_FIELDS = {
    **dict.fromkeys(("output_dir", "overwrite_output_dir", "run_name", "project"), "results lie in the task directory"),
    **dict.fromkeys(
        ("push_to_hub", "hub_token", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push"),
        "results go to output.destination",
    ),
    **dict.fromkeys(("hub_revision", "log_completions_hub_repo"), "results go to output.destination"),
    **dict.fromkeys(("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), "use log_with: tensorboard"),
    **dict.fromkeys(("report_to",), "use log_with: tensorboard"),
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), "the task type says what is done"),
    **dict.fromkeys(("eval_strategy", "eval_steps", "eval_on_start", "load_best_model_at_end"), "no rows are held out"),
    **dict.fromkeys(("local_rank", "use_cpu", "ddp_backend", "disable_tqdm", "world_size"), "the lease decides it"),
    **dict.fromkeys(("resume_from_checkpoint",), "a retry goes on from the last checkpoint; see checkpoint.load"),
    **dict.fromkeys(("model_init_kwargs", "trust_remote_code"), "use model.source and model.transformers"),
    **dict.fromkeys(("sft_model_path", "reward_model_path"), "use model.source and reward_model"),
    **dict.fromkeys(
        ("total_episodes", "num_total_batches", "micro_batch_size", "local_batch_size", "local_mini_batch_size"),
        "use steps, batch_size and mini_batch_size",
    ),
    **dict.fromkeys(("dataset_text_field", "dataset_kwargs"), "use data.text_field"),
    **dict.fromkeys(("max_completion_length", "response_length"), "use generation.max_new_tokens"),
    **dict.fromkeys(("temperature", "top_p", "top_k", "min_p", "repetition_penalty"), "use generation"),
    **dict.fromkeys(("generation_kwargs", "stop_token", "stop_token_id"), "use generation.stop"),
    **dict.fromkeys(
        ("use_vllm", *(name for name in trl_fields.GRPO if name.startswith("vllm_"))),
        "answers come from the model in training itself",
    ),
}
"""Fields of TRL's configs that a spec cannot set under `training`, and what to use instead."""

SWITCH_WORDS = {"scale_rewards": {"true": "group", "false": "none"}}
"""Fields that were switches in earlier versions of TRL, with the words that the switch stands for."""

DEFAULTS: dict[Kind, dict[str, Any]] = {
    "sft": {
        "learning_rate": 5e-5,
        "batch_size": 2,
        "num_train_epochs": 1.0,
        "max_seq_length": 1024,
        "save_steps": 100,
        "gradient_checkpointing": True,
    },
    "lora_sft": {
        "learning_rate": 2e-4,
        "batch_size": 2,
        "num_train_epochs": 1.0,
        "max_seq_length": 1024,
        "save_steps": 100,
        "gradient_checkpointing": False,
    },
    "dpo": {
        "learning_rate": 5e-7,
        "batch_size": 4,
        "num_train_epochs": 1.0,
        "max_seq_length": 1024,
        "save_freq": 500,
        "gradient_checkpointing": False,
    },
    "ppo": {
        "learning_rate": 1.41e-5,
        "batch_size": 4,
        "mini_batch_size": 1,
        "num_train_epochs": 1.0,
        "max_seq_length": 1024,
        "save_steps": 100,
        "gradient_checkpointing": False,
    },
    "grpo": {
        "learning_rate": 1e-6,
        "batch_size": 8,
        "num_generations": 8,
        "num_train_epochs": 1.0,
        "max_seq_length": 1024,
        "save_steps": 100,
        "gradient_checkpointing": False,
    },
}
"""Values of fields that the spec does not set, in addition to `SHARED_DEFAULTS`, which hold for all types."""

SHARED_DEFAULTS: dict[str, Any] = {
    "gradient_accumulation_steps": 1,
    "logging_steps": 10,
    "save_strategy": "steps",
    "save_total_limit": 2,
    "save_model": True,
    "save_archive": True,
    "warmup_steps": 0,
    "seed": 42,
    "fp16": False,
    "bf16": False,
}

DEFAULT_MODELS: dict[Kind, str] = {
    "sft": "gpt2",
    "lora_sft": "gpt2",
    "dpo": "microsoft/DialoGPT-small",
    "ppo": "microsoft/DialoGPT-small",
    "grpo": "microsoft/DialoGPT-small",
}


@dataclass(frozen=True, slots=True)
class FieldRule:
    """One cell of the table.

    Attributes:
        way: `config` (field `name` of TRL's config), `computed` (function `name`), `us`, `unused` or `refused`.
        name: See `way`.
        reason: Why it is unused or refused.
    """

    way: Literal["config", "computed", "us", "unused", "refused"]
    name: str = ""
    reason: str = ""


@cache
def cells(kind: Kind, block: Literal["training", "generation"] = "training") -> Mapping[str, FieldRule]:
    """Return the cell of each field in `block` of task type `kind`."""
    head, *rows = _rows(TRAINING if block == "training" else GENERATION)
    column = next((n for n, title in enumerate(head) if kind in title.split("+")), None)
    if column is None:
        return MappingProxyType({})
    return MappingProxyType({row[0]: _cell(row[0], row[column]) for row in rows if row[column] != "."})


def lora_fields() -> dict[str, str]:
    """Return the name in `peft.LoraConfig` of each field of `lora`."""
    return {row[0]: row[1] for row in _rows(LORA)[1:]}


@cache
def config_fields(kind: Kind) -> Mapping[str, str]:
    """Return the fields of TRL's config class for `kind`, each with the name of its type.

    PPO is in one version of TRL only. The other trainers run in that one and in newer ones, so they have the fields of
    both. A field that the installed TRL does not have is refused when the training starts.
    """
    if kind == "ppo":
        return MappingProxyType({**trl_fields_ppo.COMMON, **trl_fields_ppo.PPO})
    found: dict[str, str] = {}
    for version in (trl_fields_ppo, trl_fields):
        own = {"sft": version.SFT, "lora_sft": version.SFT, "dpo": version.DPO, "grpo": version.GRPO}
        found |= {**version.COMMON, **own[kind]}
    return MappingProxyType(found)


@cache
def words(kind: Kind) -> Mapping[str, tuple[str, ...]]:
    """Return the fields of TRL's config class for `kind` that accept certain words only, with these words."""
    own = {"sft": "SFT", "lora_sft": "SFT", "dpo": "DPO", "ppo": "PPO", "grpo": "GRPO"}[kind]
    tables = (trl_fields_ppo,) if kind == "ppo" else (trl_fields, trl_fields_ppo)
    found: dict[str, tuple[str, ...]] = {}
    for config, name, *listed in (row for table in tables for row in _rows(table.WORDS)):
        if config in {"*", own} and name not in REPLACED_FIELDS:
            found[name] = tuple(dict.fromkeys((*found.get(name, ()), *listed)))
    return MappingProxyType(found)


@cache
def passed_on(kind: Kind) -> Mapping[str, str]:
    """Return the fields of `training` that no row of the table names and that are passed to TRL's config unchanged."""
    known = cells(kind)
    return MappingProxyType(
        {name: word for name, word in config_fields(kind).items() if name not in known and name not in REPLACED_FIELDS}
    )


def is_neutral(field: str, value: Any) -> bool:
    """Return whether `value` requests only what TRL does anyway when `field` is refused."""
    if value is None or value in ("", [], {}):
        return True
    if field == "top_k":
        return value in (0, -1)
    return field in NEUTRAL and bool(value == NEUTRAL[field])


def _rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.strip().splitlines()]


def _cell(field: str, text: str) -> FieldRule:
    if text == "us":
        return FieldRule("us")
    mark, rest = text[0], text[1:]
    if mark in "-!":
        return FieldRule("unused" if mark == "-" else "refused", reason=REASONS[rest])
    if mark == "*":
        return FieldRule("computed", rest)
    return FieldRule("config", field if text == "=" else text)
