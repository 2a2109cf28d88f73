"""The specs that checks of `mloc selftest` run: small, deterministic, and for any causal language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.tasks.grpo import GRPO
from mloc_prefect.tasks.inference import INFERENCE

if TYPE_CHECKING:
    from mloc_prefect.tasks.base import TaskType

PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "A compiler is a program that",
    "The three primary colours are",
    "The opposite of hot is",
    "Seven days make a",
    "The largest planet is",
    "Bread is made from",
)
_ROWS = (
    {"question": "What is 3 + 4? Answer with the number only.", "answer": "7"},
    {"question": "What is 9 - 2? Answer with the number only.", "answer": "7"},
    {"question": "What is 2 x 3? Answer with the number only.", "answer": "6"},
    {"question": "What is 8 / 2? Answer with the number only.", "answer": "4"},
)
GPU_MEMORY = "2GiB"
"""Memory of a card that a small engine asks for, so that two of them share a card."""


def inference(
    model: str,
    *,
    rows: int = 8,
    tokens: int = 16,
    gpus: int = 0,
    engine: str = "vllm",
    options: dict[str, Any] | None = None,
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a spec of batch inference whose answers have exactly `tokens` tokens.

    Args:
        model: Folder or identifier of the model.
        rows: Number of prompts.
        tokens: Tokens of each answer.
        gpus: GPUs of the stage.
        engine: `vllm` or `transformers`.
        options: Options of the engine.
        more: Further keys of `model`.
    """
    items = [PROMPTS[n % len(PROMPTS)] for n in range(rows)]
    return _spec(
        INFERENCE,
        gpus,
        {
            "model": {"source": {"identifier": model}, engine: options or {}, **(more or {})},
            "data": {"type": "list", "items": items},
            "inference": {"max_tokens": tokens, "temperature": 0, **({"ignore_eos": True} if engine == "vllm" else {})},
        },
    )


def training(
    kind: TaskType, model: str, *, steps: int, gpus: int = 0, options: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return a spec of a small training.

    Args:
        kind: A training on plain texts.
        model: Folder or identifier of the model.
        steps: Optimiser steps; the rows are repeated as often as needed.
        gpus: GPUs of the stage.
        options: Further keys of `training`.
    """
    train = {
        "num_train_epochs": 1,
        "batch_size": 1,
        "gradient_accumulation_steps": 1,
        "max_seq_length": 64,
        "logging_steps": 1,
        "save_steps": 1,
        "bf16": gpus > 0,
        "save_model": True,
        **(options or {}),
    }
    texts = [PROMPTS[n % len(PROMPTS)] for n in range(steps * max(1, gpus))]
    body = {"model": {"source": {"identifier": model}}, "data": {"prompts": texts}, "training": train}
    return _spec(kind, gpus, body)


def grpo(model: str, *, steps: int, gpus: int = 0) -> dict[str, Any]:
    """Return a spec of a small GRPO training with a rule as reward."""
    return _spec(
        GRPO,
        gpus,
        {
            "model": {"source": {"identifier": model}},
            "data": {"prompt_column": "question", "rows": list(_ROWS)},
            "rewards": [{"name": "numeric", "answer_column": "answer"}],
            "generation": {"max_new_tokens": 8, "temperature": 1.0},
            "training": {"batch_size": 4, "num_generations": 4, "steps": steps, "bf16": gpus > 0, "save_model": False},
        },
    )


def _spec(kind: TaskType, gpus: int, body: dict[str, Any]) -> dict[str, Any]:
    hardware: dict[str, Any] = {"cpu": "1", "memory": "2Gi"}
    if gpus:
        hardware["gpu"] = {"type": "any", "count": gpus}
    return {
        "apiVersion": "mloc/v1",
        "kind": "SelfTest",
        "metadata": {"name": f"selftest-{kind.name}"},
        "spec": {"taskType": kind.name, "resources": {"replicas": 1, "hardware": hardware}, **body},
    }
