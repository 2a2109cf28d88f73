"""Defines `WorkflowPlan`: everything is decided, nothing has been started; frozen, printable, comparable."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.diagnostics.diagnostic import Diagnostic
    from mloc_prefect.plan.resources import ResourceRequest
    from mloc_prefect.spec.declared_parameters import SpecParameter
    from mloc_prefect.spec.workflow import WorkflowKind
    from mloc_prefect.tasks.base import ExecutorRef


@dataclass(frozen=True, slots=True)
class Reference:
    """One `${stage.path}` in an effective document.

    Attributes:
        where: Path of the string below `spec`, e.g. `checkpoint.load.url`.
        expression: Text between the braces, trimmed.
        stage: Node that it reads, or None for `env` and `param` roots.
        required: The stage fails when it has no value.
        whole: The placeholder is the whole string, so the value keeps its JSON type.
    """

    where: str
    expression: str
    stage: str | None
    required: bool = False
    whole: bool = False


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One task of the plan: one subflow of the flow.

    Attributes:
        key: Unique name inside the plan: the node name, or the workflow's name for a single task.
        node: Stage or node name; None for a single task.
        name: `metadata.name` of the effective document; the run name.
        task_type: Text of `spec.taskType`.
        depends_on: Keys of stages in this plan that must be DONE first.
        waits_for: Keys of stages that it only reads from (execution-only edges).
        external: Task ids of other submissions that must be DONE first.
        effective: The merged document, untouched.
        resources: What it asks of a machine.
        executor: The code that runs it.
        model: The model it names, or None.
        references: All placeholders in it.
        timeout_seconds: `spec.timeoutSec`, or None.
        priority: `spec.priority`; larger is sooner.
        max_shards: Upper bound of data-parallel shards; 1 = not sharded.
        notes: Sentences shown under the plan.
    """

    key: str
    node: str | None
    name: str
    task_type: str
    depends_on: tuple[str, ...]
    waits_for: tuple[str, ...]
    external: tuple[str, ...]
    effective: Mapping[str, Any]
    resources: ResourceRequest
    executor: ExecutorRef
    model: str | None
    references: tuple[Reference, ...] = ()
    timeout_seconds: float | None = None
    priority: int = 0
    max_shards: int = 1
    notes: tuple[str, ...] = ()

    @property
    def upstream(self) -> tuple[str, ...]:
        """Keys of all stages that must end before this one starts."""
        return tuple(dict.fromkeys((*self.depends_on, *self.waits_for)))

    def to_dict(self) -> dict[str, Any]:
        """Return the task as `mloc plan --json` prints it."""
        from mloc_prefect.plan.render import stage_dict

        return stage_dict(self)


@dataclass(frozen=True, slots=True)
class WorkflowPlan:
    """A workflow all of whose stages can run, in an order in which they can run.

    Attributes:
        name: Workflow name; the run name.
        kind: `single`, `stages` or `graph`.
        file: Name of the source, for messages.
        source_sha256: SHA-256 of the submitted text, hex.
        stages: Stages in expansion order [protocol 2.5]; every stage stands after those in its `depends_on`.
        warnings: Diagnostics that did not stop it.
        parameters: What the block `params` of the spec declares.
        source_text: The submitted text; None when values were set beside it, as `--set` does.
    """

    name: str
    kind: WorkflowKind
    file: str
    source_sha256: str
    stages: tuple[StagePlan, ...]
    warnings: tuple[Diagnostic, ...] = ()
    parameters: tuple[SpecParameter, ...] = ()
    source_text: str | None = field(default=None, repr=False, compare=False)

    @property
    def read_parameters(self) -> tuple[str, ...]:
        """Names of all parameters that its stages read, in alphabetical order."""
        texts = (r.expression for s in self.stages for r in s.references if r.stage is None)
        parts = (text.partition(".") for text in texts)
        return tuple(sorted({name.strip() for root, dot, name in parts if dot and root.strip() == "param"}))

    def stage(self, key: str) -> StagePlan:
        """Return the stage with `key`; KeyError when there is none."""
        for stage in self.stages:
            if stage.key == key:
                return stage
        raise KeyError(key)

    def __str__(self) -> str:
        from mloc_prefect.plan.render import table

        return table(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object that `mloc plan --json` prints."""
        from mloc_prefect.plan.render import plan_dict

        return plan_dict(self)

    def to_mermaid(self) -> str:
        """Return a Mermaid flowchart of the stages."""
        from mloc_prefect.plan.render import mermaid

        return mermaid(self)
