"""`mloc doctor` on task types: which engine would run one here, and whether that engine is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mloc_prefect.hardware.inventory import Inventory
    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.tasks.base import ExecutorRef, TaskType

_OURS = "mloc_prefect"

Examined = tuple[Literal["ok", "missing"], str, str | None, dict[str, Any]]


def examine_task_type(task_type: TaskType, settings: MlocSettings, inventory: Inventory) -> Examined:
    """Return level, text, fix and facts for tasks of a type that ask for a GPU if the machine has one.

    Raises:
        MlocError: The interpreter of the engine does not work.
    """
    from mloc_prefect.flow.dispatcher import interpreter
    from mloc_prefect.flow.engine_choice import choose_engine
    from mloc_prefect.flow.preflight import install_command, lack_text, missing_modules
    from mloc_prefect.plan.resources import ResourceRequest

    spec = task_type.model.model_validate({"taskType": task_type.name})
    resources = ResourceRequest(gpu_count=1 if inventory.gpus else 0)
    choice = choose_engine(task_type.executor(spec), resources, settings, inventory)
    executor, python = choice.executor, interpreter(choice.executor, settings)
    engine = engine_name(executor)
    facts: dict[str, Any] = {"engine": engine, "why": choice.why}
    missing = missing_modules(executor, python)
    if missing:
        unwritten = executor.path.partition(":")[0] in missing
        fix = install_command(executor.extra, python) if executor.extra and not unwritten else None
        facts |= {"missing": missing, "extra": executor.extra}
        return "missing", lack_text(executor, python, missing), fix, facts
    if (broken := _broken(executor, python, settings, inventory)) is not None:
        return "missing", f"{engine}: {broken[0]}", broken[1], facts
    why = f" ({choice.why})" if task_type.executor(spec).preferred else ""
    beside = "" if _is_apart(executor, settings) else ", in the main environment"
    return "ok", f"ready with {engine}{beside}{why}: {task_type.summary}", None, facts


def engine_name(executor: ExecutorRef) -> str:
    """Return the engine in a word: its environment, or the module of the executor if it runs in the main one."""
    module = executor.path.partition(":")[0].split(".")
    return executor.environment if executor.environment != "default" else module[-1 if module[0] == _OURS else 0]


def _is_apart(executor: ExecutorRef, settings: MlocSettings) -> bool:
    """Return whether the environment that the executor names is there, if it names one that can be built."""
    from mloc_prefect.execution.environments.catalog import ENVIRONMENTS, find_python

    name = executor.environment
    return name not in ENVIRONMENTS or find_python(name, settings.home, settings.python) is not None


def _broken(
    executor: ExecutorRef, python: str, settings: MlocSettings, inventory: Inventory
) -> tuple[str, str | None] | None:
    """Return what is wrong with the environment of an engine, and the fix; None if nothing is."""
    from mloc_prefect.execution.environments.catalog import ENVIRONMENTS
    from mloc_prefect.execution.environments.inspection import faults, packages_of
    from mloc_prefect.hardware.nvml import driver_cuda

    name = executor.environment
    if name not in ENVIRONMENTS or not _is_apart(executor, settings):
        return None
    found = faults(name, python, packages_of(python), gpus=len(inventory.gpus), driver=driver_cuda())
    return next(((fault.text, fault.fix) for fault in found if fault.fatal), None)
