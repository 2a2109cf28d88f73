"""What a later attempt of a training goes on from when the task did not start from the model that its spec names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mloc_prefect.execution.protocol import Cancelled
from tests.support.tiny_model import save_tiny_model
from tests.support.training import PAIRS, SUMS, TrainingBench, losses

PROMPTS = {"prompts": [f"say {n}:" for n in range(16)]}
SUM_DATA = {"rows": SUMS[:16], "prompt_column": "question", "response_column": "answer"}
DATA = {"lora_sft": SUM_DATA, "dpo": {"preferences": PAIRS[:16]}, "grpo": PROMPTS, "ppo": PROMPTS}
OWN: dict[str, dict[str, Any]] = {"ppo": {"mini_batch_size": 8, "ppo_epochs": 1}, "grpo": {"num_generations": 4}}


@pytest.mark.parametrize("kind", ["ppo", "grpo", "dpo", "lora_sft"])
def test_an_adapter_stays_on_the_model_that_was_loaded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`checkpoint.load` names a whole model, and its weights are others than those of the identifier."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # barriers between threads cost more than this model's arithmetic
    named, started = (save_tiny_model(tmp_path / name, seed=seed) for seed, name in enumerate(("named", "started")))
    bench = TrainingBench(tmp_path, named)
    spec: dict[str, Any] = {
        "training": {
            "batch_size": 8, "learning_rate": 1e-3, "steps": 5, "logging_steps": 1, "gradient_checkpointing": False,
            "save_steps": 1000, "save_archive": False, **OWN.get(kind, {}),
        },
        "lora": {"r": 4, "dropout": 0.0},
        "checkpoint": {"load": {"path": str(started)}},
        **({"rewards": [{"name": "json"}], "generation": {"max_new_tokens": 4}} if kind in {"ppo", "grpo"} else {}),
    }  # fmt: skip

    def stop(_event: Any) -> None:
        if sum(e.kind == "metric" for e in bench.events) == 3:
            bench.cancelled.set()

    bench.on_event = stop
    with pytest.raises(Cancelled):
        bench(kind, DATA[kind], **spec)
    bench.on_event = lambda _event: None
    bench.cancelled.clear()
    bases = _loaded_from(monkeypatch)
    result = bench(kind, DATA[kind], **spec)
    assert result["resumed_from_step"] == 3
    assert set(bases) == {str(started)}
    if kind in {"dpo", "lora_sft"}:
        whole = bench(kind, DATA[kind], task="whole", **spec)
        assert losses(result) == pytest.approx(losses(whole), rel=1e-3), "as if nothing had come between"


def _loaded_from(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which each model that is loaded is added."""
    from transformers import AutoModelForCausalLM

    found: list[str] = []
    load = AutoModelForCausalLM.from_pretrained

    def noted(path: Any, *args: Any, **options: Any) -> Any:
        found.append(str(path))
        return load(path, *args, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", noted)
    return found
