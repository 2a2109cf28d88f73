"""The executor of all trainings: one warm process serves sft, lora_sft, dpo, ppo and grpo, one after the other.

What a task type adds is its recipe, `RECIPE` in the module `executors/<task type>.py`.
"""

from __future__ import annotations

import os
import sys
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, cast

from mloc_prefect.executors.fields import Fields
from mloc_prefect.executors.threads import wait_passively
from mloc_prefect.executors.training_launch import devices, launch, world_of
from mloc_prefect.executors.training_recipe import Group
from mloc_prefect.executors.training_run import prepare, train
from mloc_prefect.executors.training_saving import write_failure
from mloc_prefect.tasks.training_table import KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.execution.protocol import ExecutionRequest
    from mloc_prefect.executors.training_recipe import Recipe

_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # TRL's trainers would call home at each start
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


class TrainingExecutor:
    """Trains one model at a time; the libraries stay loaded in between, models do not.

    Args:
        options: Engine options of the host; there are none.
    """

    concurrency: ClassVar[int] = 1

    def __init__(self, options: Mapping[str, Any]) -> None:
        del options
        wait_passively()
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)

    def run(self, request: ExecutionRequest, context: ExecutionContext) -> Mapping[str, Any]:
        """Do one training task.

        Raises:
            UserError: The spec, the data or the model is at fault.
            Cancelled: The client has gone; a checkpoint was left, from which a later attempt goes on.
        """
        recipe, began = recipe_of(request.task_type), time.monotonic()
        try:
            return _trained(request, context, recipe)
        except Exception as error:  # boundary: noted in the attempt's folder, told by the host
            write_failure(request, recipe, time.monotonic() - began, error)
            raise

    def close(self) -> None:
        """Return the memory of the device."""
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


def _trained(request: ExecutionRequest, context: ExecutionContext, recipe: Recipe) -> Mapping[str, Any]:
    prepared = prepare(request, context, recipe)
    context.check()
    world = world_of(Fields(request.spec))
    if world > 1 or len(devices()) > 1:  # a single process would spread one batch over all GPUs that it sees
        return launch(request, context, prepared, world)
    return train(request, context, recipe, prepared, Group())


def recipe_of(task_type: str) -> Recipe:
    """Return the recipe of a task type.

    Raises:
        ValueError: It is no training.
    """
    if task_type not in KINDS:
        raise ValueError(f"{task_type!r} is no training")
    return cast("Recipe", import_module(f"mloc_prefect.executors.{task_type}").RECIPE)
