"""What the states of a training take for each weight, and among how many devices they are divided."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.executors.training_arguments import Place, precision_of, sharding_of, with_files
from mloc_prefect.tasks.training_table import cells

if TYPE_CHECKING:
    from mloc_prefect.executors.places import Places
    from mloc_prefect.executors.training_arguments import Options

_STATES = {"sgd": 0, "adafactor": 0, "lomo": 0, "adalomo": 0, "adagrad": 1, "rmsprop": 1, "lion": 1, "ademamix": 3}
_ADAM = 2
_GRADIENTS, _PARAMETERS = 2, 3  # stages of ZeRO from which they are divided; the optimiser is from the first on


@dataclass(frozen=True, slots=True)
class Shards:
    """By what the bytes of each part are divided on one device; infinite where they lie in the RAM instead."""

    parameters: float = 1
    gradients: float = 1
    optimiser: float = 1


def shards_of(options: Options, places: Places, *, cuda: bool, world: int) -> Shards:
    """Return how FSDP or DeepSpeed divide the states; DDP, and whatever is not there, divides nothing.

    Raises:
        UserError: DeepSpeed is asked for and not installed, or there is no file with its configuration.
    """
    ways = {cell.name for cell in cells(options.kind, "training").values() if cell.way == "computed"}
    if "sharding" not in ways:
        return Shards()
    # Notes go to a copy: they are told when the arguments are made.
    chosen = sharding_of(replace(options, notes=[]), Place("", cuda=cuda, world=world))
    if "deepspeed" in chosen:
        return _zero(with_files(chosen, places)["deepspeed"], world)
    words = str(chosen.get("fsdp", "")).split()
    if "offload" in words:
        return Shards(math.inf, math.inf, math.inf)
    whole = _PARAMETERS if {"full_shard", "hybrid_shard"} & set(words) else 0
    return _stage(max(whole, _GRADIENTS if any("shard_grad_op" in w or "zero2" in w for w in words) else 0), world)


def is_mixed(options: Options, *, cuda: bool) -> bool:
    """Return whether the training computes in 16 bits."""
    return any(precision_of(replace(options, notes=[]), Place("", cuda=cuda)).values())


def optimiser_of(options: Options) -> tuple[str, float]:
    """Return the name of the optimiser and its bytes for each trained weight; unknown ones count as Adam."""
    name = (options.training.text("optim") or "adamw").lower()
    states = _STATES.get(name.removeprefix("paged_").partition("_")[0], _ADAM)
    size = 1.0 if name.endswith("_8bit") else 0.5 if name.endswith("_4bit") else 4.0
    return "Adam" if name.startswith("adamw") and size == 4.0 else name, states * size


def _zero(config: Any, world: int) -> Shards:
    """Read a DeepSpeed configuration, a mapping or the path of a JSON file."""
    if not isinstance(config, Mapping):
        try:
            config = json.loads(Path(str(config)).read_bytes())
        except (OSError, ValueError):
            config = None
    zero = config.get("zero_optimization") if isinstance(config, Mapping) else None
    stage = str(zero.get("stage", 0)) if isinstance(zero, Mapping) else ""
    if not isinstance(zero, Mapping) or not stage.isdecimal():  # the trainer refuses it in its own words
        return Shards()
    found = _stage(int(stage), world)
    if zero.get("offload_optimizer"):
        found = replace(found, optimiser=math.inf)
    return replace(found, parameters=math.inf) if zero.get("offload_param") and int(stage) == _PARAMETERS else found


def _stage(stage: int, world: int) -> Shards:
    return Shards(
        parameters=world if stage >= _PARAMETERS else 1,
        gradients=world if stage >= _GRADIENTS else 1,
        optimiser=world if stage >= 1 else 1,
    )
