"""What a task type is: one descriptor in one module, listed once in `registry.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a spec as a whole, which no single field can see.

    Attributes:
        path: Path below `spec`; what is missing there is shown at its nearest parent.
        code: Kebab-case name of the rule.
        message: One line; MLOC's own texts word for word where it has one.
        suggestion: The fix.
        severity: `error` or `warning`.
    """

    path: tuple[str | int, ...]
    code: str
    message: str
    suggestion: str | None = None
    severity: Literal["error", "warning"] = "error"


class SpecModel(BaseModel):
    """Base of every model of what users write: frozen, unknown keys kept (MLOC accepts them; the loader warns)."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True, protected_namespaces=())

    accepted: ClassVar[frozenset[str]] = frozenset()
    """Names without a field that are nevertheless no mistake."""

    passes_on: ClassVar[bool] = False
    """Other names are handed to a library, which knows them; only near misses of our own are mistakes."""


class TaskSpec(SpecModel):
    """Base of the typed reading of `spec`; `tasks.common` adds the fields that all types share [protocol 4.1]."""

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong between fields: what is missing, what does not fit together."""
        yield from ()


@dataclass(frozen=True, slots=True)
class ExecutorRef:
    """Where the code of a task type lives; loaded by string path in the child process only.

    Attributes:
        path: `package.module:Class`.
        extra: Extra of our package that brings its libraries, or None.
        environment: Name of the executor environment whose interpreter is used when one is configured.
        imports: Distributions that must be importable there, looked up without importing them.
        engine: True when it loads a model and so needs a lease on a device; False for light work.
        model_variable: Environment variable that it takes the model from when the task names none, or None.
        options: Which engine options it reads; None = all. Hosts are told apart by these only.
        shared: Tasks with the same engine may run in it at once, under one lease.
        restarts: How often a host that died is replaced within one attempt; the executor goes on where it was.
        preferred: Executors that take its place where the place has them, best first.
        asked: The spec asks for this executor, so it needs no permission by a setting.
        why: Why it is the one, when the spec alone decides it.
        refuses: Fields of the spec for which it will refuse the task, as they do not concern it.
    """

    path: str
    extra: str | None = None
    environment: str = "default"
    imports: tuple[str, ...] = ()
    engine: bool = True
    model_variable: str | None = None
    options: tuple[str, ...] | None = None
    shared: bool = False
    restarts: int = 0
    preferred: tuple[ExecutorRef, ...] = ()
    asked: bool = False
    why: str = ""
    refuses: tuple[str, ...] = ()


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
