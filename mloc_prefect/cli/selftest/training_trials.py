"""Checks of training: steps of SFT, LoRA and GRPO, a checkpoint to go on from, and two cards."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from mloc_prefect.cli.selftest.trial import CheckFailedError, NotHereError
from mloc_prefect.cli.selftest.trial_specs import grpo, training
from mloc_prefect.tasks.lora_sft import LORA_SFT
from mloc_prefect.tasks.sft import SFT

if TYPE_CHECKING:
    from pathlib import Path

    from mloc_prefect.cli.selftest.trial import Trial, TrialRun

_STEPS = 4
_LONG_STEPS = 24


def sft(trial: Trial) -> dict[str, Any]:
    """Take a few steps of full fine-tuning, on a GPU in bfloat16."""
    return _figures(trial.run(training(SFT, trial.model, steps=_STEPS, gpus=trial.devices)))


def lora(trial: Trial) -> dict[str, Any]:
    """Take a few steps with LoRA, on a GPU in bfloat16."""
    return _figures(trial.run(training(LORA_SFT, trial.model, steps=_STEPS, gpus=trial.devices)))


def grpo_steps(trial: Trial) -> dict[str, Any]:
    """Take a few steps of GRPO."""
    return _figures(trial.run(grpo(trial.model, steps=2, gpus=trial.devices)))


def resume(trial: Trial) -> dict[str, Any]:
    """Interrupt a training after a checkpoint, and let it go on from there."""
    spec = training(LORA_SFT, trial.model, steps=_LONG_STEPS, gpus=trial.devices)
    before = _checkpoints(trial)  # those of earlier checks
    process = trial.start(spec)
    trial.until(lambda: _checkpoints(trial) - before, "the first checkpoint")
    process.send_signal(signal.SIGINT)
    text = trial.wait(process)
    if process.returncode == 0:
        raise CheckFailedError("the training ended before it could be interrupted")
    run_id = trial.run_id_of(text)
    done = trial.run(spec, "--resume", run_id)
    if "checkpoint" not in trial.log_of_latest():
        raise CheckFailedError("the training began anew")
    return _figures(done)


def fsdp(trial: Trial) -> dict[str, Any]:
    """Take a few steps on two cards with a sharded model."""
    if trial.gpus < 2:
        raise NotHereError("fewer than 2 GPUs")
    options = {"allow_multi_gpu": True, "fsdp": "full_shard auto_wrap"}
    return _figures(trial.run(training(SFT, trial.model, steps=_STEPS, gpus=2, options=options)))


def _checkpoints(trial: Trial) -> set[Path]:
    return set(trial.results.rglob("checkpoint-[1-9]*/trainer_state.json"))


def _figures(done: TrialRun) -> dict[str, Any]:
    names = ("train_loss", "training_loss", "steps", "train_steps_per_second", "steps_per_second")
    metrics = {**done.result, **(done.result.get("metrics") or {})}
    return {"seconds": done.seconds, **{name: metrics[name] for name in names if metrics.get(name) is not None}}
