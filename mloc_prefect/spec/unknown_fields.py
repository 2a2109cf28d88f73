"""Advice on unknown fields: MLOC accepts them silently, we warn and name the probable typing error."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from mloc_prefect.diagnostics.diagnostic import did_you_mean
from mloc_prefect.tasks.keys import FieldNames, table_of
from mloc_prefect.tasks.registry import TASK_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mloc_prefect.diagnostics.positions import PathPart
    from mloc_prefect.tasks.base import TaskType


EARLIER_NAMES = {
    "torch_dtype": "transformers calls it 'dtype' now",
    "use_fast": "remove it: transformers has only fast tokenizers now",
    "use_auth_token": "remove it: the key comes from the environment (HF_TOKEN)",
    "attn_implementation": "use 'use_flash_attention_2: true', or remove it",
    "group_by_length": "use 'train_sampling_strategy: group_by_length'",
    "per_gpu_train_batch_size": "transformers calls it 'per_device_train_batch_size' now",
    "no_cuda": "use 'enforce_cpu: true' of inference; a training asks for GPUs in resources.hardware.gpu",
    "evaluation_strategy": "remove it: no rows are held out",
    "save_safetensors": "remove it: weights are always saved as safetensors",
    "logging_dir": "use 'log_with: tensorboard'",
    "half_precision_backend": "use 'fp16' or 'bf16'",
    "fp16_backend": "use 'fp16' or 'bf16'",
    "fp16_opt_level": "use 'fp16' or 'bf16'",
    "dataset_batch_size": "use 'batch_size'",
    "max_completion_tokens": "use 'max_tokens'",
}
"""Names of earlier versions of the libraries, and of neighbours, with what to write today."""


def unknown_field_help(path: tuple[PathPart, ...], table: FieldNames, kind: TaskType) -> str | None:
    """Return the best advice on the unknown field at `path` below `spec`: where it belongs, or its correct name."""
    key = str(path[-1])
    homes = _homes(kind.name).get(key, ())
    if len(homes) == 1:
        return f"'{key}' is a field of {homes[0]}: move it there"
    if key in EARLIER_NAMES:
        return EARLIER_NAMES[key]
    near = did_you_mean(key, table.names)
    if near:
        return near
    if len(path) == 1:
        owners = [t.name for t in TASK_TYPES if key in table_of(t.model).below]
        if owners:
            return f"task type '{kind.name}' does not read it (it belongs to {', '.join(owners[:3])})"
    return None


def item_field_help(key: str, fields: Iterable[str]) -> str | None:
    """Return advice on an unknown field of a stage or node."""
    if any(key in table_of(kind.model).below for kind in TASK_TYPES):
        return f"move '{key}' under the spec of this entry"
    return did_you_mean(key, fields)


@cache
def _homes(name: str) -> dict[str, tuple[str, ...]]:
    """Return, for each field name, the mappings of a task type that hold a field of that name."""
    from mloc_prefect.tasks.registry import task_type

    found: dict[str, tuple[str, ...]] = {}
    pending = [("spec", table_of(task_type(name).model))]
    while pending:
        path, table = pending.pop()
        for key in table.names:
            found[key] = (*found.get(key, ()), path)
            inner = table.below.get(key)
            if inner is not None:
                pending.append((f"{path}.{key}", inner))
    return found
