"""Bytes of optimizer states per weight, and the number of devices that share them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.executors.training.trainer_arguments import ArgumentContext, precision_of, sharding_of, with_files
from mloc_prefect.tasks.training.training_table import cells

if TYPE_CHECKING:
    from mloc_prefect.executors.sources.source_lookup import SourceLookup
    from mloc_prefect.executors.training.trainer_arguments import TrainerOptions

_STATES = {"sgd": 0, "adafactor": 0, "lomo": 0, "adalomo": 0, "adagrad": 1, "rmsprop": 1, "lion": 1, "ademamix": 3}
_ADAM = 2
_GRADIENTS, _PARAMETERS = 2, 3  # ZeRO stages from which these are sharded; the optimizer is from stage 1


@dataclass(frozen=True, slots=True)
class StateShards:
    """Divisors for the bytes of each part on one device; infinite where they are offloaded to RAM."""

    parameters: float = 1
    gradients: float = 1
    optimizer: float = 1


def shards_of(options: TrainerOptions, sources: SourceLookup, *, cuda: bool, world: int) -> StateShards:
    """Return how FSDP or DeepSpeed shard the states; DDP shards nothing.

    Raises:
        UserError: DeepSpeed is requested but not installed, or its configuration file does not exist.
    """
    ways = {cell.name for cell in cells(options.kind, "training").values() if cell.way == "computed"}
    if "sharding" not in ways:
        return StateShards()
    # Notes go to a copy: they are logged when the arguments are built.
    chosen = sharding_of(replace(options, notes=[]), ArgumentContext("", cuda=cuda, world=world))
    if "deepspeed" in chosen:
        return _zero(with_files(chosen, sources)["deepspeed"], world)
    words = str(chosen.get("fsdp", "")).split()
    if "offload" in words:
        return StateShards(math.inf, math.inf, math.inf)
    whole = _PARAMETERS if {"full_shard", "hybrid_shard"} & set(words) else 0
    return _stage(max(whole, _GRADIENTS if any("shard_grad_op" in w or "zero2" in w for w in words) else 0), world)


def is_mixed(options: TrainerOptions, *, cuda: bool) -> bool:
    """Return whether the training computes in 16 bits."""
    return any(precision_of(replace(options, notes=[]), ArgumentContext("", cuda=cuda)).values())


def optimizer_of(options: TrainerOptions) -> tuple[str, float]:
    """Return the name of the optimizer and its bytes per trained weight; unknown optimizers count as Adam."""
    name = (options.training.text("optim") or "adamw").lower()
    states = _STATES.get(name.removeprefix("paged_").partition("_")[0], _ADAM)
    size = 1.0 if name.endswith("_8bit") else 0.5 if name.endswith("_4bit") else 4.0
    return "Adam" if name.startswith("adamw") and size == 4.0 else name, states * size


def _zero(config: Any, world: int) -> StateShards:
    """Read a DeepSpeed configuration, a mapping or the path of a JSON file."""
    if not isinstance(config, Mapping):
        try:
            config = json.loads(Path(str(config)).read_bytes())
        except (OSError, ValueError):
            config = None
    zero = config.get("zero_optimization") if isinstance(config, Mapping) else None
    stage = str(zero.get("stage", 0)) if isinstance(zero, Mapping) else ""
    if not isinstance(zero, Mapping) or not stage.isdecimal():  # the trainer will report it
        return StateShards()
    found = _stage(int(stage), world)
    if zero.get("offload_optimizer"):
        found = replace(found, optimizer=math.inf)
    return replace(found, parameters=math.inf) if zero.get("offload_param") and int(stage) == _PARAMETERS else found


def _stage(stage: int, world: int) -> StateShards:
    return StateShards(
        parameters=world if stage >= _PARAMETERS else 1,
        gradients=world if stage >= _GRADIENTS else 1,
        optimizer=world if stage >= 1 else 1,
    )
