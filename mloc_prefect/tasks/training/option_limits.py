"""Limits of the options that are passed to TRL unchanged: bounds of numbers, and options that exclude each other.

TRL, transformers and torch check them only after the model is loaded, or in the first step; no definition lists them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.tasks.fields import FALSE_WORDS, is_deferred, number, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_prefect.tasks.fields import Numeric
    from mloc_prefect.tasks.training.training_spec import TrainingOptions
    from mloc_prefect.tasks.training.training_table import Kind

HIGHEST_SEED = 2**32 - 1
"""The largest seed that numpy accepts, which transformers seeds too."""

_FRACTION = number(ge=0, le=1)
_COUNT = whole(ge=1)
_NOT_NEGATIVE = number(ge=0)

BOUNDS: dict[str, Numeric] = {
    "adam_beta1": number(ge=0, lt=1),
    "adam_beta2": number(ge=0, lt=1),
    "adam_epsilon": _NOT_NEGATIVE,
    "data_seed": whole(ge=0, le=2**63 - 1),
    "dataloader_num_workers": whole(ge=0),
    "dataloader_prefetch_factor": _COUNT,
    "dataset_num_proc": _COUNT,
    "ddp_bucket_cap_mb": _COUNT,
    "ddp_timeout": _COUNT,
    "epsilon_high": _NOT_NEGATIVE,
    "generation_batch_size": _COUNT,
    "label_smoothing_factor": number(ge=0, lt=1),
    "ld_alpha": _FRACTION,
    "neftune_noise_alpha": _NOT_NEGATIVE,
    "num_iterations": _COUNT,
    "pad_to_multiple_of": _COUNT,
    "precompute_ref_batch_size": _COUNT,
    "ref_model_mixup_alpha": _FRACTION,
    "ref_model_sync_steps": _COUNT,
    "router_aux_loss_coef": _NOT_NEGATIVE,
    "sapo_temperature_neg": number(gt=0),
    "sapo_temperature_pos": number(gt=0),
    "steps_per_generation": _COUNT,
    "top_entropy_quantile": _FRACTION,
    "torch_empty_cache_steps": _COUNT,
}
"""Bounds of numbers under `training` that have no field of their own in our models."""

_NOT_IN_PPO = frozenset(
    {
        "accelerator_config",
        "auto_find_batch_size",
        "average_tokens_across_devices",
        "dataloader_drop_last",
        "dataloader_multiprocessing_context",
        "dataloader_num_workers",
        "dataloader_persistent_workers",
        "ddp_broadcast_buffers",
        "ddp_bucket_cap_mb",
        "ddp_find_unused_parameters",
        "full_determinism",
        "include_num_input_tokens_seen",
        "length_column_name",
        "liger_kernel_config",
        "logging_strategy",
        "neftune_noise_alpha",
        "torch_compile",
        "torch_compile_backend",
        "torch_compile_mode",
        "train_sampling_strategy",
        "use_liger_kernel",
    }
)
_MEASURED = ("reduce_lr_on_plateau", "greedy")
_WITH_LOWEST = ("cosine_with_min_lr", "cosine_warmup_with_min_lr")
_WITH_TARGETS = ("galore", "apollo")
_DIVERGENCE_LOSSES = frozenset({"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"})

Clash = tuple[str, str, str]
"""Field, message and fix."""


def without_effect(kind: Kind, name: str) -> str | None:
    """Return why the trainer of `kind` does not read an option that its config class has, None when it does."""
    if name == "label_smoothing_factor" and kind in {"dpo", "ppo", "grpo"}:
        return f"the loss of {kind} is its own"
    return "TRL's PPO has a training loop of its own" if kind == "ppo" and name in _NOT_IN_PPO else None


class _Values:
    """The options of a spec; what comes from an earlier stage counts as not known."""

    def __init__(self, training: TrainingOptions) -> None:
        self._training = training
        self._given = training.__dict__ | (training.__pydantic_extra__ or {})  # `getattr` of a missing one costs more

    def get(self, name: str) -> Any:
        """Return a value, None when it is not given or not known."""
        value = self._given.get(name)
        return None if is_deferred(value) else value

    def is_known(self, *names: str) -> bool:
        """Return whether no value comes from an earlier stage."""
        return self._training.later().isdisjoint(names)

    def flag(self, name: str) -> bool:
        """Return whether a switch is on."""
        value = self.get(name)
        return value is not None and str(value).strip().lower() not in FALSE_WORDS

    def amount(self, name: str) -> float:
        """Return a number, 0 when it is not given or has another type, which is reported elsewhere."""
        try:
            return float(self.get(name) or 0)
        except (TypeError, ValueError):
            return 0.0

    def listed(self, name: str) -> list[Any]:
        """Return a list; a single value is a list of one."""
        value = self.get(name)
        return value if isinstance(value, list) else [] if value is None else [value]


def option_clashes(kind: Kind, training: TrainingOptions, *, lora: bool) -> Iterator[Clash]:
    """Yield options that TRL, transformers or torch refuse together.

    Args:
        kind: The task type.
        training: `spec.training`.
        lora: Whether adapters are trained.
    """
    values = _Values(training)
    yield from _loading_clashes(kind, values)
    yield from _schedule_clashes(values)
    if kind in {"sft", "lora_sft"}:
        yield from _sft_clashes(values)
    if kind == "dpo":
        yield from _dpo_clashes(values)
    if kind == "grpo":
        yield from _grpo_clashes(values)
    if kind in {"dpo", "grpo"} and lora and values.flag("sync_ref_model"):
        message = "sync_ref_model is not possible with lora: the reference is the model without its adapters"
        yield "sync_ref_model", message, "remove one of them"


def _loading_clashes(kind: Kind, values: _Values) -> Iterator[Clash]:
    if not values.is_known("dataloader_num_workers") or values.amount("dataloader_num_workers") > 0:
        return
    fix = "set dataloader_num_workers: 2, or remove it"
    for name in ("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context"):
        given = values.flag(name) if name == "dataloader_persistent_workers" else values.get(name) is not None
        if given and (kind != "ppo" or name == "dataloader_prefetch_factor"):  # PPO loads its rows in its own way
            yield name, f"{name} needs dataloader_num_workers above 0", fix


def _schedule_clashes(values: _Values) -> Iterator[Clash]:
    name, more = str(values.get("lr_scheduler_type") or ""), values.get("lr_scheduler_kwargs")
    given = more if isinstance(more, dict) else {}
    if name in _MEASURED:
        message = f"lr_scheduler_type '{name}' is not possible here: no rows are held out to measure"
        yield "lr_scheduler_type", message, "use linear or cosine"
    elif not values.is_known("lr_scheduler_kwargs"):
        return
    elif name in _WITH_LOWEST and len({"min_lr", "min_lr_rate"} & set(given)) != 1:
        message = f"lr_scheduler_type '{name}' needs either min_lr or min_lr_rate in lr_scheduler_kwargs"
        yield "lr_scheduler_type", message, "add lr_scheduler_kwargs: {min_lr_rate: 0.1}"
    elif name == "warmup_stable_decay" and "num_decay_steps" not in given:
        message = f"lr_scheduler_type '{name}' needs num_decay_steps in lr_scheduler_kwargs"
        yield "lr_scheduler_type", message, "add lr_scheduler_kwargs: {num_decay_steps: 100}"
    optimizer = str(values.get("optim") or "")
    if (
        optimizer.startswith(_WITH_TARGETS)
        and values.is_known("optim_target_modules")
        and not values.get("optim_target_modules")
    ):
        message = f"optim '{optimizer}' needs optim_target_modules"
        yield "optim", message, "name the layers, e.g. optim_target_modules: [attn, mlp]"


def _sft_clashes(values: _Values) -> Iterator[Clash]:
    if values.flag("padding_free") and values.is_known("packing") and not values.flag("packing"):
        message = "padding_free needs packing: rows are not cut to max_seq_length without it"
        yield "padding_free", message, "add packing: true, or remove padding_free"
    loss = values.get("loss_type")
    if values.amount("label_smoothing_factor") and loss in (None, "chunked_nll"):
        message = "label_smoothing_factor needs loss_type nll: the default loss of TRL computes no logits"
        yield "label_smoothing_factor", message, "add loss_type: nll"
    if loss == "chunked_nll" and values.flag("use_liger_kernel"):
        yield "loss_type", "loss_type 'chunked_nll' and use_liger_kernel exclude each other", "remove one of them"


def _dpo_clashes(values: _Values) -> Iterator[Clash]:
    if not values.is_known("loss_type"):
        return
    losses = values.listed("loss_type") or ["sigmoid"]
    weights = values.listed("loss_weights")
    if weights and len(weights) != len(losses):
        message = f"loss_weights has {len(weights)} numbers for {len(losses)} losses in loss_type"
        yield "loss_weights", message, "give one weight for each loss"
    if "exo_pair" in losses and values.is_known("label_smoothing") and not values.amount("label_smoothing"):
        yield "loss_type", "loss_type 'exo_pair' needs label_smoothing above 0", "add label_smoothing: 1e-3"
    divergence = values.get("f_divergence_type")
    if divergence not in (None, "reverse_kl") and not set(map(str, losses)) <= _DIVERGENCE_LOSSES:
        message = f"f_divergence_type '{divergence}' does not go with loss_type {', '.join(map(str, losses))}"
        yield "f_divergence_type", message, f"use one of: {', '.join(sorted(_DIVERGENCE_LOSSES))}"
    if values.flag("use_weighting") and {"aot", "aot_unpaired"} & set(map(str, losses)):
        yield "use_weighting", "use_weighting does not go with loss_type aot and aot_unpaired", "remove one of them"
    if values.flag("sync_ref_model") and values.flag("precompute_ref_log_probs"):
        message = "sync_ref_model and precompute_ref_log_probs exclude each other"
        yield "sync_ref_model", message, "remove one of them"


def _grpo_clashes(values: _Values) -> Iterator[Clash]:
    if values.flag("auto_find_batch_size"):
        message = "auto_find_batch_size is not possible here: a smaller batch would split groups of answers"
        yield "auto_find_batch_size", message, "remove it, and set a smaller batch_size"
    if values.get("generation_batch_size") is not None and values.get("steps_per_generation") is not None:
        message = "generation_batch_size and steps_per_generation exclude each other"
        yield "generation_batch_size", message, "remove one of them"
    if values.flag("sync_ref_model") and values.is_known("beta", "kl_coef", "init_kl_coef"):
        beta = max(values.amount(name) for name in ("beta", "kl_coef", "init_kl_coef"))
        if not beta:
            yield "sync_ref_model", "sync_ref_model needs beta above 0: without it there is no reference", "set beta"
