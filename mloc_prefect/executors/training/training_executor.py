"""The executor of all trainings: one warm process runs sft, lora_sft, dpo, ppo and grpo, one after the other.

What a task type adds is its recipe, `RECIPE` in the module `executors/training/<task type>.py`.
"""

from __future__ import annotations

import os
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, cast

from mloc_prefect.execution.leased_devices import leased_gpus
from mloc_prefect.executors.common.gpu_memory import free_memory
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.common.threads import wait_passively
from mloc_prefect.executors.training.ranks.launch import launch, world_of
from mloc_prefect.executors.training.recipe import ProcessGroup
from mloc_prefect.executors.training.saving import write_failure
from mloc_prefect.executors.training.training_run import prepare, train
from mloc_prefect.tasks.training.training_table import KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.execution.context import ExecutionContext
    from mloc_prefect.execution.protocol import ExecutionRequest
    from mloc_prefect.executors.training.recipe import Recipe

_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # TRL's trainers would send telemetry at each start
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


class TrainingExecutor:
    """Trains one model at a time; the libraries stay loaded between tasks, models do not.

    Args:
        options: Engine options of the host; unused.
    """

    concurrency: ClassVar[int] = 1

    def __init__(self, options: Mapping[str, Any]) -> None:
        del options
        wait_passively()
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)

    def run(self, request: ExecutionRequest, context: ExecutionContext) -> Mapping[str, Any]:
        """Run one training task.

        Raises:
            UserError: The spec, the data or the model is at fault.
            Cancelled: The task was cancelled; a checkpoint was saved, from which a later attempt resumes.
        """
        recipe, began = recipe_of(request.task_type), time.monotonic()
        try:
            return _run_training(request, context, recipe)
        except Exception as error:  # boundary: recorded in the attempt's folder, reported by the host
            write_failure(request, recipe, time.monotonic() - began, error)
            raise

    def close(self) -> None:
        """Free the memory of the device."""
        free_memory()


def _run_training(request: ExecutionRequest, context: ExecutionContext, recipe: Recipe) -> Mapping[str, Any]:
    prepared = prepare(request, context, recipe)
    context.check()
    world = world_of(SpecReader(request.spec))
    if world > 1 or len(leased_gpus()) > 1:  # a single process would spread one batch over all GPUs that it sees
        return launch(request, context, prepared, world)
    return train(request, context, recipe, prepared, ProcessGroup())


def recipe_of(task_type: str) -> Recipe:
    """Return the recipe of a task type.

    Raises:
        ValueError: It is not a training task type.
    """
    if task_type not in KINDS:
        raise ValueError(f"{task_type!r} is not a training task type")
    return cast("Recipe", import_module(f"mloc_prefect.executors.training.{task_type}").RECIPE)
