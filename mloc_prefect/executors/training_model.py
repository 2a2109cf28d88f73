"""Tokenizer and model of a training: new adapters, adapters to go on with, or all weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.engine import EngineOptions, weights_progress
from mloc_prefect.executors.load_errors import load_errors
from mloc_prefect.executors.models_source import find_model
from mloc_prefect.executors.training_arguments import lora_arguments
from mloc_prefect.tasks.training_table import DEFAULT_MODELS

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.executors.fields import Fields
    from mloc_prefect.executors.models_source import ModelPlace
    from mloc_prefect.executors.places import Places
    from mloc_prefect.executors.training_arguments import Options
    from mloc_prefect.executors.training_recipe import Job

ADAPTER = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Weights:
    """What a training starts from.

    Attributes:
        base: The model.
        adapter: Folder of a LoRA adapter to go on with, or None.
        name: What results call it.
    """

    base: ModelPlace
    adapter: Path | None
    name: str

    @property
    def tokenizer_folder(self) -> str:
        """Where the tokenizer lies: an adapter's folder has one when the training that made it saved it."""
        if self.adapter is not None and (self.adapter / "tokenizer_config.json").is_file():
            return str(self.adapter)
        return self.base.path


def find_weights(options: Options, spec: Fields, checkpoint: Path | None, places: Places) -> Weights:
    """Return where the weights lie; nothing is loaded yet.

    Args:
        options: Options of the training.
        spec: The resolved spec.
        checkpoint: Folder that `checkpoint.load` or `training.resume_from_path` named: a model or an adapter.
        places: Mirrors and local paths.

    Raises:
        UserError: They are not there.
    """
    source = spec.child("model").child("source")
    identifier, revision = source.text("identifier"), source.text("revision")
    name = identifier or DEFAULT_MODELS[options.kind]
    if checkpoint is None:
        return Weights(find_model(name, revision, places), None, name)
    if (checkpoint / ADAPTER).is_file():
        base = identifier or _base_of(checkpoint)
        return Weights(find_model(base, revision, places), checkpoint, base)
    return Weights(find_model(str(checkpoint), None, places), None, name)


def load_tokenizer(weights: Weights, spec: Fields) -> Any:
    """Return the tokenizer, with a token to pad with.

    Raises:
        UserError: It cannot be loaded.
    """
    from transformers import AutoTokenizer

    with load_errors(weights.tokenizer_folder):
        tokenizer = AutoTokenizer.from_pretrained(weights.tokenizer_folder, **_common(weights, spec))
    if tokenizer.eos_token is None:
        raise UserError(f"the tokenizer of {weights.name} has no end token, so trained answers could not end")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    weights: Weights, options: Options, spec: Fields, on_phase: Callable[[str, float | None], None], *, cuda: bool
) -> Any:
    """Return the model that is trained: with trainable adapters when the task has `lora`, else with all weights.

    An adapter to go on with is trained further by tasks with `lora`, whose other fields then have no say (protocol
    4.4), and merged into the model by the others.

    Raises:
        UserError: It cannot be loaded, or has no such modules.
    """
    from transformers import AutoModelForCausalLM

    with_lora = wants_lora(options, spec)
    arguments = _model_arguments(options, spec, with_lora=with_lora, cuda=cuda)
    on_phase("loading weights", 0.0)
    with load_errors(weights.base.path), weights_progress(on_phase):
        model = AutoModelForCausalLM.from_pretrained(weights.base.path, **_common(weights, spec), **arguments)
    model.config.use_cache = False  # of no use while training, and at odds with gradient checkpointing
    if weights.adapter is not None:
        return _with_adapter(model, weights.adapter, options, trainable=with_lora)
    return _with_new_adapter(model, spec.child("lora")) if with_lora else model


def load_reference(job: Job) -> Any:
    """Return the model that a policy is held near to: what the training starts from, whatever it has learnt since.

    TRL would load it by the model's name, which tells neither of a merged adapter nor of a revision.

    Returns:
        None for tasks with `lora`: their reference is the model with its first adapters, or without any.

    Raises:
        UserError: It cannot be loaded.
    """
    if wants_lora(job.options, job.spec):
        return None
    return load_model(job.weights, job.options, job.spec, job.context.phase, cuda=job.cuda)


def wants_lora(options: Options, spec: Fields) -> bool:
    """Return whether adapters are trained: always by lora_sft, by the others when the spec has a `lora` block."""
    return options.kind == "lora_sft" or spec.get("lora") is not None


def load_config(weights: Weights, spec: Fields) -> Any:
    """Return the configuration of the model, which costs nothing to load.

    Raises:
        UserError: It cannot be read.
    """
    from transformers import AutoConfig

    with load_errors(weights.base.path):
        return AutoConfig.from_pretrained(weights.base.path, **_common(weights, spec))


def window_of(config: Any, tokenizer: Any) -> int | None:
    """Return the most tokens that a model reads, None when it has no bound."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(limit, int) and limit > 0:
        return limit
    named: int = tokenizer.model_max_length
    return named if named < 1 << 40 else None  # tokenizers without a bound carry an astronomic number


def dtype_name(options: Options, spec: Fields, *, cuda: bool) -> str:
    """Return the dtype that weights are loaded in.

    Weights that are trained stay in float32, which mixed precision (`bf16`, `fp16`) relies on; frozen ones below
    adapters are kept in 16 bits then.
    """
    named = EngineOptions.of(spec).dtype
    if named != "auto":
        return named
    if wants_lora(options, spec) and cuda:
        for word, dtype in (("bf16", "bfloat16"), ("fp16", "float16")):
            if options.training.flag(word, default=False):
                return dtype
    return "float32"


def _common(weights: Weights, spec: Fields) -> dict[str, Any]:
    common: dict[str, Any] = {
        "trust_remote_code": EngineOptions.of(spec).trust_remote_code,
        "local_files_only": weights.base.local_only,
    }
    return {**common, "revision": weights.base.commit} if weights.base.commit else common


def _model_arguments(options: Options, spec: Fields, *, with_lora: bool, cuda: bool) -> dict[str, Any]:
    engine = EngineOptions.of(spec)
    if not engine.bits:
        extra = {"attn_implementation": "flash_attention_2"} if engine.flash_attention else {}
        return {"dtype": dtype_name(options, spec, cuda=cuda), **extra}
    if not with_lora:
        raise UserError(f"weights in {engine.bits} bits cannot be trained; add a lora block, or use lora_sft")
    from transformers import BitsAndBytesConfig

    return {"quantization_config": BitsAndBytesConfig(load_in_8bit=engine.bits == 8, load_in_4bit=engine.bits == 4)}


def _with_adapter(model: Any, folder: Path, options: Options, *, trainable: bool) -> Any:
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        loaded = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise UserError(f"the adapter in {folder} does not fit the model: {' '.join(str(error).split())}") from error
    if trainable:
        return loaded
    note = f"the adapter in {folder} is merged into the model, since {options.kind} trains all weights"
    if note not in options.notes:
        options.notes.append(note)
    return loaded.merge_and_unload().requires_grad_(True)  # the weights below adapters are frozen


def _with_new_adapter(model: Any, lora: Fields) -> Any:
    from peft import LoraConfig, get_peft_model

    arguments = lora_arguments(lora)
    try:
        return get_peft_model(model, LoraConfig(**arguments))
    except (ValueError, TypeError) as error:
        names = sorted({name.rpartition(".")[2] for name, part in model.named_modules() if _is_linear(part)})
        raise UserError(
            f"spec.lora does not fit the model: {' '.join(str(error).split())[:300]}; its linear layers are called "
            f"{', '.join(names)} (target_modules: [all-linear] takes all)"
        ) from error


def _is_linear(part: Any) -> bool:
    return type(part).__name__ in {"Linear", "Conv1D", "Linear4bit", "Linear8bitLt"}


def _base_of(adapter: Path) -> str:
    try:
        name = json.loads((adapter / ADAPTER).read_bytes()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{adapter / ADAPTER} cannot be read: {error}") from None
    if not name:
        raise UserError(f"{adapter / ADAPTER} names no base model; set spec.model.source.identifier")
    return str(name)
