"""`agent`: an LLM agent works on one or many tasks [protocol 4.6]."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from mloc_prefect.tasks.base import ExecutorRef, SpecModel, SpecProblem, TaskType
from mloc_prefect.tasks.common import CommonSpec, url_problems
from mloc_prefect.tasks.fields import (
    Count,
    ItemText,
    NotNegative,
    Positive,
    Text,
    block,
    is_deferred,
    number,
    rows,
    whole,
)
from mloc_prefect.tasks.inference import engine_options
from mloc_prefect.tasks.prompts import DATA_TYPES, PromptData

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mloc_prefect.tasks.base import TaskSpec

CONFIGURATION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
"""Names of configurations: a path below their folder, without `..` and hidden parts."""


class AgentOptions(SpecModel):
    """`agent`: in MLOC only `timeout`, which it does not read. A spec can only narrow what its configuration allows."""

    timeout: Positive | None = None
    base_url: Text | None = Field(None, alias="baseUrl")
    model: Text | None = None
    api_key: Text | None = None
    tools: Annotated[list[ItemText] | None, rows()] = None
    max_steps: Count | None = None
    max_tool_calls: NotNegative | None = None
    max_tokens: Count | None = None
    max_response_tokens: Count | None = None
    temperature: Annotated[float | None, number(ge=0)] = None
    seed: Annotated[int | None, whole()] = None
    concurrency: Count | None = None
    max_failed_items: NotNegative | None = None

    def problems(self, path: tuple[str, ...]) -> Iterator[SpecProblem]:
        """Yield problems of the block at `path`."""
        if self.base_url:
            yield from url_problems((*path, "base_url"), self.base_url)
        if self.api_key and not self.base_url:
            message = "api_key is sent to agent.base_url only, and there is none"
            fix = "add base_url, or remove api_key: the operator's endpoint has a key of its own"
            yield SpecProblem((*path, "api_key"), "ignored-value", message, fix, "warning")


class AgentData(PromptData):
    """`data` of agent tasks; in addition to the other types `static`, a single task in `data.task`."""

    task: Text | None = None


class AgentSpec(CommonSpec):
    """`spec` of an agent task."""

    config_name: Text = Field("default", alias="configName")
    task: Text | None = None
    data: Annotated[AgentData | None, block()] = None
    agent: Annotated[AgentOptions, block()] = AgentOptions()

    def problems(self) -> Iterator[SpecProblem]:
        """Yield what MLOC's worker would refuse, and names of configurations that cannot be."""
        yield from super().problems()
        if self.data is None or not self.data.model_fields_set:
            if not self.task:
                yield SpecProblem(
                    ("data",),
                    "missing-data",
                    "Either spec.data or spec.task is required",
                    "add task: with what the agent should do",
                )
        elif self.data.type == "static":
            if not self.data.task:
                message = "spec.data.task is required for type == 'static'"
                yield SpecProblem(("data", "task"), "missing-value", message, "add what the agent should do")
        else:
            yield from self.data.problems(("static", *DATA_TYPES))
        if not CONFIGURATION.fullmatch(self.config_name) and not is_deferred(self.config_name):
            message = "configName is not the name of a configuration"
            fix = "write letters, digits, '_', '-' and '.', with '/' between folders, e.g. examples/search_agent"
            yield SpecProblem(("configName",), "invalid-path", message, fix)
        yield from self.agent.problems(("agent",))
        yield from self._model_problems()

    def _model_problems(self) -> Iterator[SpecProblem]:
        """Yield what is not read, or contradicts itself, where the task loads a model of its own."""
        if self.model.source.identifier and self.agent.base_url:
            message = "an agent has either model.source, which is loaded here, or agent.base_url, not both"
            yield SpecProblem(("agent", "base_url"), "ignored-value", message, "remove one of them")
        if self.model.adapters:
            message = "model.adapters has no effect: agents load whole models only"
            fix = "serve the model with its adapter and name that in agent.base_url, or remove model.adapters"
            yield SpecProblem(("model", "adapters"), "ignored-value", message, fix)
        if self.model.vllm.model_fields_set:
            message = "model.vllm has no effect: agents load models with transformers"
            fix = "start a vLLM server and name it in agent.base_url, or remove model.vllm"
            yield SpecProblem(("model", "vllm"), "ignored-value", message, fix, "warning")


_PATH = "mloc_prefect.executors.agent:AgentExecutor"


def _executor(spec: TaskSpec) -> ExecutorRef:
    """Return the executor: with a device if the spec names a model to load, else light work beside an endpoint."""
    table = isinstance(spec, AgentSpec) and spec.data is not None and spec.data.type == "dataset"
    if _model(spec):
        return ExecutorRef(
            "mloc_prefect.executors.agent:LocalAgentExecutor",
            extra="agent,transformers",
            environment="agent",
            imports=("pydantic_ai", "torch", "transformers", *(["datasets"] if table else [])),
            options=("model", "revision", "trust_remote_code", "enforce_cpu", "transformers"),
        )
    if table:
        return ExecutorRef(
            _PATH, extra="agent,transformers", environment="agent", imports=("pydantic_ai", "datasets"), engine=False
        )
    return ExecutorRef(_PATH, extra="agent", environment="agent", imports=("pydantic_ai",), engine=False)


def _model(spec: TaskSpec) -> str | None:
    return spec.model.source.identifier if isinstance(spec, AgentSpec) else None


def _options(spec: TaskSpec) -> Mapping[str, Any]:
    return engine_options(spec) if _model(spec) else {}


AGENT = TaskType(
    "agent",
    AgentSpec,
    _executor,
    "an LLM agent works on one or many tasks",
    _options,
    _model,
    agent=True,
)
