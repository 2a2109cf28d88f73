"""`agent`: an LLM agent works on one task, or on many [protocol 4.6]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mloc_prefect.tasks.base import ExecutorRef, Problem, TaskType
from mloc_prefect.tasks.common import CommonSpec
from mloc_prefect.tasks.fields import Free, Text, block
from mloc_prefect.tasks.prompts import DATA_TYPES, PromptData

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_prefect.tasks.base import TaskSpec


class AgentData(PromptData):
    """`data` of agent tasks: also `static`, one task in `data.task`."""

    task: Text | None = None


class AgentSpec(CommonSpec):
    """`spec` of an agent task; `agent.timeout` is accepted and, as in MLOC, not read."""

    config_name: Text = Field("default", alias="configName")
    task: Text | None = None
    data: Annotated[AgentData | None, block()] = None
    agent: Free = Field(default_factory=dict)

    def problems(self) -> Iterator[Problem]:
        """Yield what MLOC's worker would refuse."""
        yield from super().problems()
        if self.data is None or not self.data.model_fields_set:
            if not self.task:
                yield Problem(
                    ("data",),
                    "missing-data",
                    "Either spec.data or spec.task is required",
                    "add task: with what the agent shall do",
                )
        elif self.data.type == "static":
            if not self.data.task:
                message = "spec.data.task is required for type == 'static'"
                yield Problem(("data", "task"), "missing-value", message, "add what the agent shall do")
        else:
            yield from self.data.problems(("static", *DATA_TYPES))


def _executor(_spec: TaskSpec) -> ExecutorRef:
    path = "mloc_prefect.executors.agent:AgentExecutor"
    return ExecutorRef(path, extra="agent", environment="agent", imports=("pydantic_ai",), engine=False)


AGENT = TaskType("agent", AgentSpec, _executor, "an LLM agent works on one or many tasks")
