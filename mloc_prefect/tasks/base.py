"""What a task type is: one descriptor in one module, listed once in `registry.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class SpecModel(BaseModel):
    """Base of every model of what users write: frozen, unknown keys kept (MLOC accepts them; the loader warns)."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True, protected_namespaces=())


class TaskSpec(SpecModel):
    """Fields of `spec` that every task type shares; `tasks.common` fills it in. [protocol 4.1]"""


@dataclass(frozen=True, slots=True)
class ExecutorRef:
    """Where the code of a task type lives; loaded by string path in the child process only.

    Attributes:
        path: `package.module:Class`.
        extra: Extra of our package that brings its libraries, or None.
        environment: Name of the executor environment whose interpreter is used when one is configured.
        imports: Distributions that must be importable there, looked up without importing them.
        engine: True when it loads a model and so needs a lease on a device; False for light work.
    """

    path: str
    extra: str | None = None
    environment: str = "default"
    imports: tuple[str, ...] = ()
    engine: bool = True


def _no_options(_spec: TaskSpec) -> dict[str, Any]:
    return {}


def _no_model(_spec: TaskSpec) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class TaskType:
    """One value of `spec.taskType`.

    Attributes:
        name: The exact, case-sensitive text.
        model: Typed reading of `spec`.
        executor: Chooses the executor for one spec.
        summary: One line for `mloc doctor` and `mloc schema`.
        engine_options: What makes a warm host reusable: tasks with equal options may share it.
        model_identifier: The model that the task names, for tags, labels and mirrors.
        required_references: Paths below `spec` where an unresolved `${...}` fails the stage instead of becoming "".
    """

    name: str
    model: type[TaskSpec]
    executor: Callable[[TaskSpec], ExecutorRef]
    summary: str
    engine_options: Callable[[TaskSpec], Mapping[str, Any]] = field(default=_no_options)
    model_identifier: Callable[[TaskSpec], str | None] = field(default=_no_model)
    required_references: tuple[str, ...] = ()
