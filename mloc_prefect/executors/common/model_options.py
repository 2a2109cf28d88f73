"""How a model is loaded: device, dtype, quantization and adapters, the same for inference and training.

Standard library only at import.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.cpu_dtype import slow_in_16_bits

if TYPE_CHECKING:
    from mloc_prefect.executors.common.spec_reader import SpecReader

_DTYPES = {
    "auto": "auto",
    "float16": "float16",
    "fp16": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float32": "float32",
    "fp32": "float32",
}
_ALL_GPUS = frozenset({"auto", "balanced", "balanced_low_0", "sequential"})
_ONE_GPU = re.compile(r"(?:cuda:)?(\d+)")
_UNLIMITED = 1 << 40  # tokenizers without a limit have an astronomic number


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """`spec.model.transformers` [protocol 4.2].

    Attributes:
        device: `auto` (spread over all GPUs), `cuda`, `cuda:N`, `cpu`, or "" (GPU if there is one).
        dtype: Name of a torch dtype, or `auto`: as the weights were saved; float32 on a CPU that is slow in 16 bits.
        trust_remote_code: Whether to run Python code that comes with the model.
        low_cpu_mem_usage: Accepted without effect; transformers 5 always loads so.
        bits: 8 or 4 for quantization with bitsandbytes, else 0.
        flash_attention: Whether to use FlashAttention 2.
    """

    device: str = ""
    dtype: str = "auto"
    trust_remote_code: bool = False
    low_cpu_mem_usage: bool = True
    bits: int = 0
    flash_attention: bool = False

    @classmethod
    def of(cls, spec: SpecReader) -> ModelOptions:
        """Read a spec; `enforce_cpu` applies when `device_map` is not set.

        Raises:
            UserError: A value is unknown.
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
            device=_device(device),
            dtype=_DTYPES[dtype],
            trust_remote_code=trusts_remote_code(spec, options),
            low_cpu_mem_usage=options.flag("low_cpu_mem_usage", default=True),
            bits=4 if four else 8 if eight else 0,
            flash_attention=options.flag("use_flash_attention_2", default=False),
        )

    def loading_dtype(self, device: str) -> str:
        """Return the dtype that inference on `device` loads the weights in."""
        return "float32" if self.dtype == "auto" and device == "cpu" and slow_in_16_bits() else self.dtype

    def quantization(self) -> Any:
        """Return the `BitsAndBytesConfig` for `bits`."""
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(load_in_8bit=self.bits == 8, load_in_4bit=self.bits == 4)


def trusts_remote_code(spec: SpecReader, options: SpecReader) -> bool:
    """Return whether the options of an engine, or `model.source`, allow Python code that comes with the model."""
    return options.flag("trust_remote_code", default=False) or spec.child("model").child("source").flag(
        "trust_remote_code", default=False
    )


def _device(word: str) -> str:
    if word in _ALL_GPUS:
        return "auto"
    one = _ONE_GPU.fullmatch(word)
    if one is None and word not in {"cuda", "cpu", ""}:
        raise UserError(f"Unsupported device_map: {word}; use auto, cuda, cuda:N or cpu")
    return f"cuda:{int(one[1])}" if one else word


def choose_device(wanted: str, gpus: int) -> str:
    """Return `auto`, `cuda`, `cuda:N` or `cpu` for the `device` of `ModelOptions`.

    Raises:
        UserError: A GPU is requested that is not there.
    """
    if wanted.startswith("cuda") and not gpus:
        raise UserError("Requested CUDA but no GPU is available.")
    if wanted.startswith("cuda:") and int(wanted[5:]) >= gpus:
        raise UserError(f"Requested {wanted} but this task has {gpus} GPU{'s' if gpus > 1 else ''}, counted from 0")
    if wanted == "auto":
        return "auto" if gpus > 1 else "cuda" if gpus else "cpu"
    return wanted or ("cuda" if gpus else "cpu")


def context_window(config: Any, tokenizer: Any) -> int | None:
    """Return the largest number of tokens that a model reads, None when unlimited."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(limit, int) and limit > 0:
        return limit
    named: int = tokenizer.model_max_length
    return named if named < _UNLIMITED else None


def require_package(module: str, field: str, package: str, parent: str = "spec.model.transformers") -> None:
    """Return if `module` is installed, which a field of the spec needs.

    Raises:
        UserError: It is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{parent}.{field} needs a package that is not installed: pip install {package}")
