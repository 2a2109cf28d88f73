"""Chooses the executor of a stage on a machine: vLLM where it is installed, else transformers. [protocol 4.2]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mloc_prefect.execution.environments.catalog import ENVIRONMENTS, find_python
from mloc_prefect.hardware.inventory import wanted_gpus

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mloc_prefect.hardware.inventory import Inventory
    from mloc_prefect.plan.resources import ResourceRequest
    from mloc_prefect.plan.workflow_plan import StagePlan
    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.tasks.base import ExecutorRef


@dataclass(frozen=True, slots=True)
class ExecutorChoice:
    """The executor of one stage on one machine.

    Attributes:
        executor: Its reference.
        why: One clause for people.
    """

    executor: ExecutorRef
    why: str


def choose_engines(
    stages: Iterable[StagePlan], settings: MlocSettings, inventory: Inventory
) -> dict[str, ExecutorChoice]:
    """Return `choose_engine` of each stage, by stage key."""
    return {stage.key: choose_engine(stage.executor, stage.resources, settings, inventory) for stage in stages}


def choose_engine(
    executor: ExecutorRef, resources: ResourceRequest, settings: MlocSettings, inventory: Inventory
) -> ExecutorChoice:
    """Return which of `executor` and those preferred to it runs on the machine.

    Args:
        executor: What the plan chose from the spec alone.
        resources: What the stage asks for.
        settings: Where environments are, and whether vLLM may run on the CPU.
        inventory: What the machine has.
    """
    passed_over = []
    for better in executor.preferred:
        obstacle = _obstacle(better, resources, settings, inventory)
        if obstacle is None:
            return ExecutorChoice(better, _reason(better))
        passed_over.append(obstacle)
    plain = replace(executor, preferred=())
    return ExecutorChoice(plain, executor.why or "; ".join(passed_over) or "the only executor of this task type")


def _obstacle(
    executor: ExecutorRef, resources: ResourceRequest, settings: MlocSettings, inventory: Inventory
) -> str | None:
    """Return why `executor` cannot run the stage, or None when it can."""
    name = executor.environment
    on_gpu = _needs_gpu(executor)
    if on_gpu and not inventory.gpus:
        return f"no GPU for {name} here"
    if on_gpu and not wanted_gpus(resources):
        return f"the stage asks for no GPU, which {name} needs"
    if find_python(name, settings.home, settings.python) is None:
        return f"no environment {name} is built"
    if not on_gpu and not (executor.asked or settings.vllm_cpu):
        return f"{name} is not allowed for specs that do not ask for vLLM (MLOC_VLLM_CPU)"
    return None


def _reason(executor: ExecutorRef) -> str:
    if _needs_gpu(executor):
        return "the stage asks for a GPU and the environment has vLLM"
    return "the spec asks for vLLM" if executor.asked else "MLOC_VLLM_CPU allows vLLM on the CPU"


def _needs_gpu(executor: ExecutorRef) -> bool:
    recipe = ENVIRONMENTS.get(executor.environment)
    return recipe is not None and recipe.needs_gpu
