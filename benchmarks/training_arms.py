"""The arms of `training.py` that need no server: `python benchmarks/training_arms.py executor|trl MODEL`.

Reads one JSON object a line, {kind, steps, batch, checkpoint}, and prints one for each: `losses` by step,
`train_seconds` (TRL's own `train_runtime`), `cpu_seconds` of the training, `seconds` (from data and files to the end)
and `spent`: seconds by part.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

if TYPE_CHECKING:
    from collections.abc import Callable

RATE, LENGTH, SEED, ROWS = 5e-5, 128, 42, 64
LORA = {"r": 8, "alpha": 16, "dropout": 0.05, "target_modules": ["q_proj", "v_proj"]}
_WORDS = ("river", "stone", "light", "paper", "signal", "cloud", "metal", "garden", "window", "music", "market")
_CPU = "cpu"
_CALLBACKS = ("on_train_begin", "on_step_end", "on_log", "on_save")


def texts() -> list[str]:
    """Return texts of 50 to 90 tokens."""
    return [" ".join(_WORDS[(row * 7 + at * at) % len(_WORDS)] for at in range(40 + row % 30)) for row in range(ROWS)]


def spec(model: str, job: dict[str, Any]) -> dict[str, Any]:
    """Return the `spec` of our task."""
    return {
        "taskType": job["kind"],
        "resources": {"replicas": 1, "hardware": {"cpu": "1", "memory": "4Gi"}},
        "model": {"source": {"identifier": model}},
        "data": {"prompts": texts()},
        **({"lora": LORA} if job["kind"] == "lora_sft" else {}),
        "training": {
            "steps": job["steps"],
            "batch_size": job["batch"],
            "learning_rate": RATE,
            "max_seq_length": LENGTH,
            "logging_steps": 1,
            "gradient_checkpointing": False,  # the defaults of the task types differ
            "seed": SEED,
            "save_strategy": "steps" if job["checkpoint"] else "no",
            "save_steps": job["steps"],
        },
    }


def timed(
    spent: Counter[str], part: str, call: Callable[..., Any], clock: Callable[[], float] = time.perf_counter
) -> Callable[..., Any]:
    """Return `call`, which then counts its seconds under `part`."""

    @wraps(call)
    def run(*args: Any, **named: Any) -> Any:
        began = clock()
        try:
            return call(*args, **named)
        finally:
            spent[part] += clock() - began  # type: ignore[assignment] # seconds

    return run


def watch(spent: Counter[str]) -> None:
    """Let what our executor adds to TRL's trainer count its seconds."""
    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.executors.training import trainer_callbacks as ours
    from mloc_prefect.executors.training.metrics_file import MetricsFile

    for callback in (ours.ProgressReporter, ours.DivergenceGuard, ours.CheckpointMarker):
        for event in _CALLBACKS:
            if event in vars(callback):
                setattr(callback, event, timed(spent, f"callback {callback.__name__}", vars(callback)[event]))
    MetricsFile.write = timed(spent, "  of it metrics file", MetricsFile.write)
    for name in ("progress", "metric", "log"):
        setattr(ExecutionContext, name, timed(spent, "  of it events", getattr(ExecutionContext, name)))
    ExecutionContext.check = timed(spent, "hooks that look for a cancellation", ExecutionContext.check)


def executor(model: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function that trains with our executor, without the rest of the product."""
    from tests.support.training import TrainingBench, losses

    def run(job: dict[str, Any]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="mloc-bench-") as folder:
            result = TrainingBench(Path(folder), Path(model)).run(job["kind"], spec(model, job))
            return {"losses": losses(result), "train_seconds": result["metrics"]["train_runtime"]}

    return run


def trl(model: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function that trains as a user of TRL alone would write it, with the same options."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from trl import SFTConfig, SFTTrainer

    lora = {"r": LORA["r"], "lora_alpha": LORA["alpha"], "lora_dropout": LORA["dropout"]}
    adapter = LoraConfig(**lora, target_modules=LORA["target_modules"], task_type="CAUSAL_LM")

    def run(job: dict[str, Any]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="mloc-bench-") as folder:
            set_seed(SEED)
            trainer = SFTTrainer(
                model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
                args=SFTConfig(
                    output_dir=folder,
                    max_steps=job["steps"],
                    per_device_train_batch_size=job["batch"],
                    gradient_accumulation_steps=1,
                    learning_rate=RATE,
                    max_length=LENGTH,
                    logging_steps=1,
                    seed=SEED,
                    data_seed=SEED,
                    save_strategy="steps" if job["checkpoint"] else "no",
                    save_steps=job["steps"],
                    bf16=False,
                    gradient_checkpointing=False,
                    use_cpu=True,
                    report_to="none",
                    disable_tqdm=True,
                    dataloader_pin_memory=False,
                ),
                train_dataset=Dataset.from_list([{"text": text} for text in texts()]),
                processing_class=AutoTokenizer.from_pretrained(model),
                peft_config=adapter if job["kind"] == "lora_sft" else None,
            )
            trainer.train()
            trainer.save_model(folder)
            history = trainer.state.log_history
        losses = [row["loss"] for row in history if "loss" in row]
        return {"losses": losses, "train_seconds": history[-1]["train_runtime"]}

    return run


def main() -> None:
    out, _ = os.fdopen(os.dup(1), "w"), os.dup2(2, 1)  # libraries print, too
    arm, model = sys.argv[1:]
    spent: Counter[str] = Counter()
    if arm == "executor":
        watch(spent)
    run = {"executor": executor, "trl": trl}[arm](model)
    import transformers

    transformers.Trainer._save_checkpoint = timed(spent, "checkpoint", transformers.Trainer._save_checkpoint)
    transformers.Trainer.train = timed(spent, _CPU, transformers.Trainer.train, time.process_time)
    for line in sys.stdin:
        spent.clear()
        began = time.perf_counter()
        answer = run(json.loads(line))
        answer |= {"seconds": time.perf_counter() - began, "cpu_seconds": spent.pop(_CPU), "spent": dict(spent)}
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
