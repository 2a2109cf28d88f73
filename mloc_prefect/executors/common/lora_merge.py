"""Combines several LoRA adapters into one, because engines accept one per request.

The sum of low-rank changes is itself low-rank: with W + sum_i s_i B_i A_i (s_i the scaling of adapter i, A_i of shape
(r_i, in), B_i of shape (out, r_i)) the matrices are concatenated: A = [A_1; A_2; ...], B = [s_1 B_1, s_2 B_2, ...], of
rank sum_i r_i and scaling 1.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.checkpoint_source import ADAPTER_CONFIG

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mloc_prefect.executors.common.adapters import LoraAdapter

_WEIGHTS = "adapter_model.safetensors"
_A, _B = ".lora_A.weight", ".lora_B.weight"
_UNSUPPORTED = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias", "layer_replication")


def combined(adapters: Sequence[LoraAdapter], target: Path) -> LoraAdapter:
    """Return one adapter in the folder `target` that changes the model as all of `adapters` together.

    Raises:
        UserError: One of them is more than plain LoRA on linear layers, or they do not fit together.
    """
    from safetensors.torch import save_file

    rank = sum(adapter.rank for adapter in adapters)
    parts = [_read_adapter(adapter) for adapter in adapters]
    modules = sorted({name for part in parts for name in part})
    tensors: dict[str, Any] = {}
    for module in modules:
        tensors |= _joined(module, [part.get(module) for part in parts], [a.rank for a in adapters])
    target.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target / _WEIGHTS)
    # PEFT identifies layers by the last part of their name.
    layers = sorted({module.rsplit(".", 1)[-1] for module in modules})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none", "target_modules": layers}
    (target / ADAPTER_CONFIG).write_text(json.dumps(config))
    fingerprint = hashlib.sha256("+".join(a.fingerprint for a in adapters).encode()).hexdigest()
    name = "+".join(a.name for a in adapters)
    return replace(adapters[0], name=name, path=str(target), fingerprint=fingerprint, rank=rank)


def _read_adapter(adapter: LoraAdapter) -> dict[str, tuple[Any, Any]]:
    """Return A and the scaled B of each layer that an adapter changes."""
    from safetensors.torch import load_file

    folder = Path(adapter.path)
    config: Mapping[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_bytes())
    unsupported = [name for name in _UNSUPPORTED if config.get(name)]
    if config.get("bias", "none") != "none":
        unsupported.append("bias")
    if unsupported or not (folder / _WEIGHTS).is_file():
        why = f"it uses {', '.join(unsupported)}" if unsupported else f"it has no {_WEIGHTS}"
        raise UserError(f"spec.model.adapters: {adapter.name!r} cannot be combined with others: {why}; use it alone")
    root = math.sqrt(adapter.rank) if config.get("use_rslora") else adapter.rank
    scaling = float(config.get("lora_alpha", 8)) / root
    tensors = load_file(folder / _WEIGHTS)
    names = {name.removesuffix(_A) for name in tensors if name.endswith(_A)}
    if {f"{name}{end}" for name in names for end in (_A, _B)} != set(tensors):
        raise UserError(f"spec.model.adapters: {adapter.name!r} cannot be combined with others: not only linear layers")
    return {name: (tensors[name + _A], tensors[name + _B] * scaling) for name in names}


def _joined(module: str, parts: Sequence[tuple[Any, Any] | None], ranks: Sequence[int]) -> dict[str, Any]:
    """Return A and B of one layer; adapters that do not change the layer contribute zeros."""
    import torch

    size_in, size_out, dtype = next((p[0].shape[1], p[1].shape[0], p[0].dtype) for p in parts if p is not None)
    downs, ups = [], []
    for part, rank in zip(parts, ranks, strict=True):
        down, up = part or (torch.zeros(rank, size_in, dtype=dtype), torch.zeros(size_out, rank, dtype=dtype))
        if down.shape != (rank, size_in) or up.shape != (size_out, rank):
            raise UserError(f"spec.model.adapters: they do not fit one model: {module} has different sizes in them")
        downs.append(down.to(dtype))
        ups.append(up.to(dtype))
    return {module + _A: torch.cat(downs, dim=0).contiguous(), module + _B: torch.cat(ups, dim=1).contiguous()}
