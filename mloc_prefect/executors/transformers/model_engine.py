"""A loaded causal language model with its tokenizer. Imports torch and transformers inside functions only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.gpu_memory import limit_memory
from mloc_prefect.executors.common.load_errors import load_errors, load_whole
from mloc_prefect.executors.common.model_options import choose_device, context_window, require_package
from mloc_prefect.executors.common.threads import usable_cores
from mloc_prefect.executors.common.weights_progress import weights_progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.executors.common.adapters import LoraAdapter
    from mloc_prefect.executors.common.model_options import ModelOptions
    from mloc_prefect.executors.sources.models_source import ModelLocation


@dataclass(slots=True)
class Engine:
    """A model in memory.

    Attributes:
        location: Its origin.
        options: How it was loaded.
        model: The `PreTrainedModel`, in inference mode.
        tokenizer: Its tokenizer.
        device: Name of the device that receives the input.
        dtype: Name of the dtype of the weights.
        window: Largest number of tokens of prompt and answer together, or None when unlimited.
        stops: Ids of the tokens that end an answer.
        pad: Id that pads short rows; it is masked, so its value does not matter.
        adapter: Fingerprint of the LoRA adapter in `model`, "" without one.
        lasting: Whether that adapter has changed the model in a way that cannot be undone.
    """

    location: ModelLocation
    options: ModelOptions
    model: Any
    tokenizer: Any
    device: str
    dtype: str
    window: int | None
    stops: frozenset[int]
    pad: int
    adapter: str = ""
    lasting: bool = False

    def takes(self, adapter: LoraAdapter | None) -> bool:
        """Return whether `adapt` can switch the model to `adapter`."""
        return not self.lasting or self.adapter == (adapter.fingerprint if adapter else "")


def load_engine(
    location: ModelLocation,
    options: ModelOptions,
    on_phase: Callable[[str, float | None], None],
    on_tokenizer: Callable[[Any], None],
) -> Engine:
    """Load a model.

    Args:
        location: From `models_source.find_model`.
        options: How to load it.
        on_phase: Called with the current step, and its fraction (0 to 1) where known.
        on_tokenizer: Called with the tokenizer before the weights are loaded; what it raises ends the loading.

    Raises:
        UserError: The model cannot be loaded this way here.
    """
    on_phase("importing torch", None)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    limit_memory()
    device = choose_device(options.device, gpus=torch.cuda.device_count())
    torch.set_num_threads(usable_cores())
    common = location.loading_arguments(trust_remote_code=options.trust_remote_code)
    with load_errors(location.path):
        on_phase("loading tokenizer", None)
        tokenizer = AutoTokenizer.from_pretrained(location.path, **common)
    on_tokenizer(tokenizer)
    with load_errors(location.path):
        on_phase("loading weights", 0.0)
        with weights_progress(on_phase):
            model = load_whole(AutoModelForCausalLM, location.path, **common, **_model_arguments(options, device))
    if device != "auto" and not options.bits:
        model.to(device)
    model.eval()
    return _ready(location, options, model, tokenizer)


def adapt(engine: Engine, adapter: LoraAdapter | None) -> None:
    """Replace the LoRA adapter of the model; None removes it.

    Args:
        engine: An engine that `takes` the adapter. After an error the model may contain a part of it.
        adapter: From `find_adapter`.

    Raises:
        UserError: The adapter does not fit the model, or peft is missing.
    """
    if engine.adapter == (adapter.fingerprint if adapter else ""):
        return
    if engine.adapter:
        engine.model, engine.adapter = engine.model.unload(), ""
    if adapter is None:
        return
    require_package("peft", "adapters", "peft", parent="spec.model")
    from peft import PeftModel
    from safetensors import SafetensorError
    from torch import OutOfMemoryError

    base = engine.model
    try:
        engine.model = PeftModel.from_pretrained(base, adapter.path).eval()
    except OutOfMemoryError:  # not the adapter's fault: another attempt may succeed
        raise
    except (RuntimeError, OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"LoRA adapter {adapter.name!r} ({adapter.path}) does not fit the model: {first}") from error
    config = engine.model.active_peft_config
    # peft puts these into the base model's own layers, and its `unload` does not remove them.
    engine.lasting = bool(config.modules_to_save) or config.bias != "none"
    engine.adapter = adapter.fingerprint


def _ready(location: ModelLocation, options: ModelOptions, model: Any, tokenizer: Any) -> Engine:
    from transformers import GenerationConfig

    stops = _stop_ids(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(stops, default=0)
    # Sampling is done by our own processors: the model's defaults (temperature, top_p...) must not affect `generate`.
    model.generation_config = GenerationConfig(eos_token_id=sorted(stops) or None, pad_token_id=pad)
    return Engine(
        location=location,
        options=options,
        model=model,
        tokenizer=tokenizer,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        window=context_window(model.config, tokenizer),
        stops=stops,
        pad=pad,
    )


def _model_arguments(options: ModelOptions, device: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {"dtype": options.loading_dtype(device)}
    if device == "auto":
        arguments["device_map"] = "auto"
    if options.flash_attention:
        require_package("flash_attn", "use_flash_attention_2", "flash-attn")
        arguments["attn_implementation"] = "flash_attention_2"
    if options.bits:
        require_package("bitsandbytes", f"load_in_{options.bits}bit", "bitsandbytes")
        arguments.update(quantization_config=options.quantization(), device_map="auto")
    return arguments


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = getattr(model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in (*listed, tokenizer.eos_token_id) if isinstance(i, int))
