"""`TaskType`, the descriptor of a task type, and the base classes of spec models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


CODE_NOT_ALLOWED = "code-not-allowed"
INPUT_NOT_ALLOWED = "input-not-allowed"
HOST_NOT_ALLOWED = "host-not-allowed"
OUTPUT_NOT_ALLOWED = "output-not-allowed"
"""Codes of what the operator's settings refuse; see `artifacts.spec_rules`."""


@dataclass(frozen=True, slots=True)
class SpecProblem:
    """A problem of a spec as a whole, which no single field can detect.

    Attributes:
        path: Path below `spec`; a missing value is reported at its nearest parent.
        code: Kebab-case name of the rule.
        message: One line; MLOC's own text word for word where it has one.
        suggestion: The fix.
        severity: `error` or `warning`.
        wants: What the field takes, if a common slip of YAML gives something else.
    """

    path: tuple[str | int, ...]
    code: str
    message: str
    suggestion: str | None = None
    severity: Literal["error", "warning"] = "error"
    wants: Literal["text", "list"] | None = None


class SpecModel(BaseModel):
    """Base of all spec models: frozen; unknown keys are kept, because MLOC accepts them and the loader warns."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True, protected_namespaces=())

    accepted: ClassVar[frozenset[str]] = frozenset()
    """Names that have no field and are nevertheless accepted without a warning."""

    passes_on: ClassVar[bool] = False
    """Whether other names are passed to a library; then only names similar to our own are reported."""


class TaskSpec(SpecModel):
    """Base of the typed form of `spec`; `tasks.common` adds the fields that all types share [protocol 4.1]."""

    def problems(self) -> Iterator[SpecProblem]:
        """Yield problems between fields: missing values, and values that do not fit together."""
        yield from ()


@dataclass(frozen=True, slots=True)
class ExecutorRef:
    """Names the executor of a task type; its code is loaded by import path in the child process only.

    Attributes:
        path: `package.module:Class`.
        extra: Extra of our package that installs its libraries, or None.
        environment: Name of the executor environment whose interpreter is used if it is configured.
        imports: Distributions that must be importable there; checked without importing them.
        engine: True if it loads a model and therefore needs a device lease; False for light work.
        model_variable: Environment variable that names the default model, or None.
        options: The engine options that it reads, None = all. Only these distinguish hosts.
        shared: Whether tasks with the same engine may run in it at once, under one lease.
        restarts: How many times a dead host is replaced within one attempt; the executor then continues.
        preferred: Executors to use instead where they are available, best first.
        asked: Whether the spec requests this executor, so that no setting has to permit it.
        why: Why it was chosen, if the spec alone decides it.
        refuses: Fields of the spec that make it refuse the task.
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


Category = Literal["inference", "training", "other"]
"""What clients of MLOC tell task types apart by. [protocol 2.1]."""


def _no_options(_spec: TaskSpec) -> dict[str, Any]:
    return {}


def _no_model(_spec: TaskSpec) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class TaskType:
    """One value of `spec.taskType`.

    Attributes:
        name: The exact, case-sensitive name.
        model: Model of `spec`.
        executor: Returns the executor for a spec.
        summary: One line for `mloc doctor` and `mloc schema`.
        engine_options: Returns what identifies a warm host: tasks with equal options may share it.
        model_identifier: Returns the model that the task names, for tags, labels and mirrors.
        required_references: Paths below `spec` where an unresolved `${...}` fails the stage instead of becoming "".
        category: What records and metrics count it as.
        shardable: Its rows can be divided among workers; in MLOC only those of inference are.
        reads_enforce_cpu: `spec.enforce_cpu` keeps it off the GPUs; other types ignore the field.
        agent: It runs a configuration of agents, which the operator has (`spec.configName`).
    """

    name: str
    model: type[TaskSpec]
    executor: Callable[[TaskSpec], ExecutorRef]
    summary: str
    engine_options: Callable[[TaskSpec], Mapping[str, Any]] = field(default=_no_options)
    model_identifier: Callable[[TaskSpec], str | None] = field(default=_no_model)
    required_references: tuple[str, ...] = ()
    category: Category = "other"
    shardable: bool = False
    reads_enforce_cpu: bool = False
    agent: bool = False
