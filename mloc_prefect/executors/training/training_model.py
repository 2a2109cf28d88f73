"""Tokenizer and model of a training: with new adapters, with existing adapters, or with all weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.failures import one_line
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.checkpoint_source import ADAPTER_CONFIG, check_adapter
from mloc_prefect.executors.common.load_errors import load_errors, load_whole
from mloc_prefect.executors.common.model_options import ModelOptions
from mloc_prefect.executors.common.weights_progress import weights_progress
from mloc_prefect.executors.sources.models_source import find_model, model_in
from mloc_prefect.executors.training.trainer_arguments import lora_arguments
from mloc_prefect.tasks.training.training_table import DEFAULT_MODELS

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.executors.common.spec_reader import SpecReader
    from mloc_prefect.executors.sources.models_source import ModelLocation
    from mloc_prefect.executors.sources.source_lookup import SourceLookup
    from mloc_prefect.executors.training.recipe import TrainingJob
    from mloc_prefect.executors.training.trainer_arguments import TrainerOptions


@dataclass(frozen=True, slots=True)
class InitialWeights:
    """The weights that a training starts from.

    Attributes:
        base: The model.
        adapter: Folder of a LoRA adapter to continue with, or None.
        name: Name of the model in results.
    """

    base: ModelLocation
    adapter: Path | None
    name: str

    @property
    def tokenizer_folder(self) -> str:
        """Folder of the tokenizer: that of the adapter if it contains one, as it does after a training."""
        if self.adapter is not None and (self.adapter / "tokenizer_config.json").is_file():
            return str(self.adapter)
        return self.base.path


def find_weights(
    options: TrainerOptions, spec: SpecReader, checkpoint: Path | None, sources: SourceLookup
) -> InitialWeights:
    """Return the location of the weights; nothing is loaded yet.

    Args:
        options: Options of the training.
        spec: The resolved spec.
        checkpoint: Folder that `checkpoint.load` or `training.resume_from_path` named: a model or an adapter.
        sources: Mirrors and local paths.

    Raises:
        UserError: The weights do not exist.
    """
    source = spec.child("model").child("source")
    identifier, revision = source.text("identifier"), source.text("revision")
    name = identifier or DEFAULT_MODELS[options.kind]
    if checkpoint is None:
        return InitialWeights(find_model(name, revision, sources), None, name)
    if (checkpoint / ADAPTER_CONFIG).is_file():
        base = identifier or _base_of(checkpoint)
        check_adapter(checkpoint)
        return InitialWeights(find_model(base, revision, sources), checkpoint, base)
    return InitialWeights(model_in(str(checkpoint), checkpoint), None, name)


def load_tokenizer(weights: InitialWeights, spec: SpecReader) -> Any:
    """Return the tokenizer, with a padding token.

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
    weights: InitialWeights,
    options: TrainerOptions,
    spec: SpecReader,
    on_phase: Callable[[str, float | None], None],
    *,
    cuda: bool,
) -> Any:
    """Return the model to train: with trainable adapters when the task has `lora`, else with all weights.

    An existing adapter is trained further by tasks with `lora`, whose other fields are then ignored (protocol 4.4), and
    merged into the model by the others.

    Raises:
        UserError: It cannot be loaded, or has no such modules.
    """
    from transformers import AutoModelForCausalLM

    with_lora = wants_lora(options, spec)
    arguments = _model_arguments(options, spec, with_lora=with_lora, cuda=cuda)
    on_phase("loading weights", 0.0)
    with load_errors(weights.base.path), weights_progress(on_phase):
        model = load_whole(AutoModelForCausalLM, weights.base.path, **_common(weights, spec), **arguments)
    model.config.use_cache = False  # useless in training, and incompatible with gradient checkpointing
    if weights.adapter is not None:
        return _with_adapter(model, weights.adapter, options, trainable=with_lora)
    return _with_new_adapter(model, spec.child("lora")) if with_lora else model


def load_reference(job: TrainingJob) -> Any:
    """Return the reference model, which is the initial model, whatever the policy has learned since.

    TRL would load it by the model's name, and so without a merged adapter and without the revision.

    Returns:
        None for tasks with `lora`: their reference is the model with its initial adapters, or without any.

    Raises:
        UserError: It cannot be loaded.
    """
    if wants_lora(job.options, job.spec):
        return None
    return load_model(job.weights, job.options, job.spec, job.context.phase, cuda=job.cuda)


def wants_lora(options: TrainerOptions, spec: SpecReader) -> bool:
    """Return whether adapters are trained: always by lora_sft, by the others when the spec has a `lora` block."""
    return options.kind == "lora_sft" or spec.get("lora") is not None


def load_config(weights: InitialWeights, spec: SpecReader) -> Any:
    """Return the configuration of the model, which is cheap to load.

    Raises:
        UserError: It cannot be read.
    """
    from transformers import AutoConfig

    with load_errors(weights.base.path):
        return AutoConfig.from_pretrained(weights.base.path, **_common(weights, spec))


def dtype_name(options: TrainerOptions, spec: SpecReader, *, cuda: bool) -> str:
    """Return the dtype that weights are loaded in.

    Trained weights stay in float32, which mixed precision (`bf16`, `fp16`) requires; frozen weights below adapters
    are then kept in 16 bits.
    """
    named = ModelOptions.of(spec).dtype
    if named != "auto":
        return named
    if wants_lora(options, spec) and cuda:
        for word, dtype in (("bf16", "bfloat16"), ("fp16", "float16")):
            if options.training.flag(word, default=False):
                return dtype
    return "float32"


def _common(weights: InitialWeights, spec: SpecReader) -> dict[str, Any]:
    return weights.base.loading_arguments(trust_remote_code=ModelOptions.of(spec).trust_remote_code)


def _model_arguments(options: TrainerOptions, spec: SpecReader, *, with_lora: bool, cuda: bool) -> dict[str, Any]:
    engine = ModelOptions.of(spec)
    if not engine.bits:
        extra = {"attn_implementation": "flash_attention_2"} if engine.flash_attention else {}
        return {"dtype": dtype_name(options, spec, cuda=cuda), **extra}
    if not with_lora:
        raise UserError(f"weights in {engine.bits} bits cannot be trained; add a lora block, or use lora_sft")
    return {"quantization_config": engine.quantization()}


def _with_adapter(model: Any, folder: Path, options: TrainerOptions, *, trainable: bool) -> Any:
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        loaded = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise UserError(f"the adapter in {folder} does not fit the model: {one_line(error)}") from error
    if trainable:
        return loaded
    note = f"the adapter in {folder} is merged into the model, since {options.kind} trains all weights"
    if note not in options.notes:
        options.notes.append(note)
    return loaded.merge_and_unload().requires_grad_(True)  # the weights below adapters are frozen


def _with_new_adapter(model: Any, lora: SpecReader) -> Any:
    from peft import LoraConfig, get_peft_model

    arguments = lora_arguments(lora)
    try:
        return get_peft_model(model, LoraConfig(**arguments))
    except (ValueError, TypeError) as error:
        names = sorted({name.rpartition(".")[2] for name, part in model.named_modules() if _is_linear(part)})
        raise UserError(
            f"spec.lora does not fit the model: {one_line(error, 300)}; its linear layers are called "
            f"{', '.join(names)} (target_modules: [all-linear] takes all)"
        ) from error


def _is_linear(part: Any) -> bool:
    return type(part).__name__ in {"Linear", "Conv1D", "Linear4bit", "Linear8bitLt"}


def _base_of(adapter: Path) -> str:
    try:
        name = json.loads((adapter / ADAPTER_CONFIG).read_bytes()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{adapter / ADAPTER_CONFIG} cannot be read: {error}") from None
    if not name:
        raise UserError(f"{adapter / ADAPTER_CONFIG} names no base model; set spec.model.source.identifier")
    return str(name)
