"""A loaded causal language model with its tokenizer. Imports torch and transformers inside functions only."""

from __future__ import annotations

import importlib.util
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.cpu_dtype import slow_in_16_bits
from mloc_prefect.executors.gpu_memory import bound_memory
from mloc_prefect.executors.load_errors import load_errors
from mloc_prefect.executors.threads import usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mloc_prefect.executors.adapters import Adapter
    from mloc_prefect.executors.fields import Fields
    from mloc_prefect.executors.models_source import ModelPlace

_DTYPES = {
    "auto": "auto",
    "float16": "float16",
    "fp16": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float32": "float32",
    "fp32": "float32",
}
_SPREAD = frozenset({"auto", "balanced", "balanced_low_0"})
_SHOW_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How a model is loaded: `spec.model.transformers`. [protocol 4.2].

    Attributes:
        device: `auto` (spread over all GPUs), `cuda`, `cpu`, or "" (GPU when there is one).
        dtype: Name of a torch dtype, or `auto`: as the weights were saved, on a CPU that is slow in 16 bits float32.
        trust_remote_code: Run Python code that comes with the model.
        low_cpu_mem_usage: Accepted; transformers 5 always loads so.
        bits: 8 or 4 for bitsandbytes quantisation, else 0.
        flash_attention: Use FlashAttention 2.
    """

    device: str = ""
    dtype: str = "auto"
    trust_remote_code: bool = False
    low_cpu_mem_usage: bool = True
    bits: int = 0
    flash_attention: bool = False

    @classmethod
    def of(cls, spec: Fields) -> EngineOptions:
        """Read a spec; `enforce_cpu` decides where `device_map` does not.

        Raises:
            UserError: A value that is not known.
        """
        options = spec.child("model").child("transformers")
        dtype = (options.text("dtype") or "auto").lower().removeprefix("torch.")
        if dtype not in _DTYPES:
            raise UserError(f"Unsupported dtype: {options.text('dtype')}")
        device = (options.text("device_map") or "").lower()
        if not device and spec.flag("enforce_cpu", default=False):
            device = "cpu"
        eight, four = options.flag("load_in_8bit", default=False), options.flag("load_in_4bit", default=False)
        return cls(
            device="auto" if device in _SPREAD else device if device in {"cuda", "cpu"} else "",
            dtype=_DTYPES[dtype],
            trust_remote_code=options.flag("trust_remote_code", default=False)
            or spec.child("model").child("source").flag("trust_remote_code", default=False),
            low_cpu_mem_usage=options.flag("low_cpu_mem_usage", default=True),
            bits=4 if four else 8 if eight else 0,
            flash_attention=options.flag("use_flash_attention_2", default=False),
        )


@dataclass(slots=True)
class Engine:
    """A model in memory.

    Attributes:
        place: Where it came from.
        options: How it was loaded.
        model: The `PreTrainedModel`, in inference mode.
        tokenizer: Its tokenizer.
        device: Name of the device that takes the input.
        dtype: Name of the dtype that the weights have.
        window: Most tokens of prompt and answer together, or None when it has no bound.
        stops: Ids of the tokens that end an answer.
        pad: Id that fills up short rows; it is masked, so any does.
        adapter: Fingerprint of the LoRA adapter in `model`, "" without one.
        lasting: Whether that adapter has changed the model beyond what can be taken out again.
    """

    place: ModelPlace
    options: EngineOptions
    model: Any
    tokenizer: Any
    device: str
    dtype: str
    window: int | None
    stops: frozenset[int]
    pad: int
    adapter: str = ""
    lasting: bool = False

    def takes(self, adapter: Adapter | None) -> bool:
        """Return whether `adapt` can bring the model to `adapter`."""
        return not self.lasting or self.adapter == (adapter.fingerprint if adapter else "")


def load_engine(place: ModelPlace, options: EngineOptions, on_phase: Callable[[str, float | None], None]) -> Engine:
    """Load a model.

    Args:
        place: From `models_source.find_model`.
        options: How.
        on_phase: Told what is being done, and how much of it (0 to 1) where that is known.

    Raises:
        UserError: It cannot be loaded so here.
    """
    on_phase("importing torch", None)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    bound_memory()
    device = _device(options.device, gpus=torch.cuda.device_count())
    torch.set_num_threads(usable_cores())
    common: dict[str, Any] = {"trust_remote_code": options.trust_remote_code, "local_files_only": place.local_only}
    if place.commit:
        common["revision"] = place.commit
    with load_errors(place.path):
        on_phase("loading tokenizer", None)
        tokenizer = AutoTokenizer.from_pretrained(place.path, **common)
        on_phase("loading weights", 0.0)
        with weights_progress(on_phase):
            model = AutoModelForCausalLM.from_pretrained(place.path, **common, **_model_arguments(options, device))
    if device != "auto" and not options.bits:
        model.to(device)
    model.eval()
    return _ready(place, options, model, tokenizer)


def adapt(engine: Engine, adapter: Adapter | None) -> None:
    """Put a LoRA adapter into the model in place of the one that is there; None takes that out.

    Args:
        engine: One that `takes` the adapter. After any error the model may hold a part of it.
        adapter: From `find_adapter`.

    Raises:
        UserError: It does not fit the model, or peft is missing.
    """
    if engine.adapter == (adapter.fingerprint if adapter else ""):
        return
    if engine.adapter:
        engine.model, engine.adapter = engine.model.unload(), ""
    if adapter is None:
        return
    _need("peft", "adapters", "peft", parent="spec.model")
    from peft import PeftModel
    from safetensors import SafetensorError
    from torch import OutOfMemoryError

    base = engine.model
    try:
        engine.model = PeftModel.from_pretrained(base, adapter.path).eval()
    except OutOfMemoryError:  # no fault of the adapter: another attempt may go better
        raise
    except (RuntimeError, OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"LoRA adapter {adapter.name!r} ({adapter.path}) does not fit the model: {first}") from error
    config = engine.model.active_peft_config
    # peft puts these into the base model's own layers, and its `unload` leaves them there.
    engine.lasting = bool(config.modules_to_save) or config.bias != "none"
    engine.adapter = adapter.fingerprint


def _ready(place: ModelPlace, options: EngineOptions, model: Any, tokenizer: Any) -> Engine:
    from transformers import GenerationConfig

    stops = _stop_ids(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(stops, default=0)
    # Sampling is ours: the model's own defaults (temperature, top_p...) must not leak into `generate`.
    model.generation_config = GenerationConfig(eos_token_id=sorted(stops) or None, pad_token_id=pad)
    return Engine(
        place=place,
        options=options,
        model=model,
        tokenizer=tokenizer,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        window=_window(model, tokenizer),
        stops=stops,
        pad=pad,
    )


def _device(wanted: str, gpus: int) -> str:
    if wanted == "cuda" and not gpus:
        raise UserError("Requested CUDA but no GPU is available.")
    if wanted == "auto":
        return "auto" if gpus > 1 else "cuda" if gpus else "cpu"
    return wanted or ("cuda" if gpus else "cpu")


def _model_arguments(options: EngineOptions, device: str) -> dict[str, Any]:
    widened = options.dtype == "auto" and device == "cpu" and slow_in_16_bits()
    arguments: dict[str, Any] = {"dtype": "float32" if widened else options.dtype}
    if device == "auto":
        arguments["device_map"] = "auto"
    if options.flash_attention:
        _need("flash_attn", "use_flash_attention_2", "flash-attn")
        arguments["attn_implementation"] = "flash_attention_2"
    if options.bits:
        _need("bitsandbytes", f"load_in_{options.bits}bit", "bitsandbytes")
        from transformers import BitsAndBytesConfig

        quantized = BitsAndBytesConfig(load_in_8bit=options.bits == 8, load_in_4bit=options.bits == 4)
        arguments.update(quantization_config=quantized, device_map="auto")
    return arguments


def _need(module: str, field: str, package: str, parent: str = "spec.model.transformers") -> None:
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{parent}.{field} needs a package that is not installed: pip install {package}")


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = getattr(model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in (*listed, tokenizer.eos_token_id) if isinstance(i, int))


def _window(model: Any, tokenizer: Any) -> int | None:
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and limit > 0:
        return limit
    named: int = tokenizer.model_max_length
    return named if named < 1 << 40 else None  # tokenizers without a bound carry an astronomic number


@contextmanager
def weights_progress(on_phase: Callable[[str, float | None], None]) -> Iterator[None]:
    """Turn the library's progress bars into phases."""
    from transformers.utils import logging

    class Bar:
        """As much of a tqdm as the loader uses."""

        def __init__(self, iterable: Any = None, total: float | None = None) -> None:
            self.iterable = iterable
            self.total = total if total is not None else len(iterable) if hasattr(iterable, "__len__") else None
            self.n = 0.0
            self.shown_at = time.monotonic()

        def __iter__(self) -> Iterator[Any]:
            for item in self.iterable:
                yield item
                self.update(1)

        def update(self, n: float = 1) -> None:
            self.n += n
            if self.total and time.monotonic() - self.shown_at >= _SHOW_SECONDS:
                self.shown_at = time.monotonic()
                on_phase("loading weights", min(1.0, self.n / self.total))

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            return lambda *_args, **_kwargs: None  # close, set_description, refresh, ...

    def make(_factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Bar:
        return Bar(args[0] if args else kwargs.get("iterable"), kwargs.get("total"))

    before = logging.set_tqdm_hook(make)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)
