"""Runs one item: an agent with its model and its tools, within limits. How the item ended is returned, not raised."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic_ai import Agent
from pydantic_ai.exceptions import (
    AgentRunError,
    ModelConnectionError,
    ModelHTTPError,
    UsageLimitExceeded,
    UserError,
)
from pydantic_ai.toolsets import CombinedToolset, FunctionToolset
from pydantic_ai.usage import UsageLimits

from mloc_prefect.artifacts.transfer.outgoing import is_temporary, shown_text, shown_url
from mloc_prefect.execution.failures import one_line
from mloc_prefect.executors.agent.guarded_http import refusal_of
from mloc_prefect.executors.agent.item_steps import JournaledModel, JournaledToolset
from mloc_prefect.executors.agent.sandbox.code_sandbox import SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mloc_prefect.executors.agent.agent_job import AgentJob
    from mloc_prefect.executors.agent.item_steps import ItemSteps

_SHOWN = 500


@dataclass(frozen=True, slots=True)
class ItemOutcome:
    """How an item ended.

    Attributes:
        output: The answer, "" if it failed.
        error: Why it failed, or None.
        passing: Whether another attempt may succeed.
    """

    output: str = ""
    error: str | None = None
    passing: bool = False


async def run_item(
    text: str,
    job: AgentJob,
    steps: ItemSteps,
    model: Any,
    tools: Sequence[Callable[..., Any]],
    servers: Sequence[Any],
) -> ItemOutcome:
    """Work on one item.

    Args:
        text: The task.
        job: Configuration and limits.
        steps: Counts, records and replays its steps.
        model: The language model.
        tools: Tools of our own.
        servers: Toolsets of MCP servers; they are started for this item.
    """
    limits = job.limits
    toolset = CombinedToolset([FunctionToolset(list(tools)), *servers])
    agent = Agent(
        JournaledModel(model, steps),
        instructions=job.configuration.instructions or None,
        toolsets=[JournaledToolset(toolset, steps)],
        retries=limits.steps,  # a model may err as long as it has steps
    )
    usage = UsageLimits(
        request_limit=limits.steps,
        tool_calls_limit=limits.tool_calls,
        total_tokens_limit=limits.tokens or None,
    )
    try:
        async with asyncio.timeout(limits.seconds):
            result = await agent.run(text, usage_limits=usage)
    except TimeoutError:
        return ItemOutcome(error=f"it took longer than its limit of {limits.seconds} s (agent.timeout)")
    except UsageLimitExceeded:
        return ItemOutcome(error=_reached(job, steps))
    except (Exception, BaseExceptionGroup) as error:  # boundary: servers of others take part, and items fail alone
        return _failure(_first(error), job)
    output = str(result.output)
    if (size := len(output.encode("utf-8", "replace"))) > limits.output_bytes:
        return ItemOutcome(error=f"its answer has {size} bytes, and its limit is {limits.output_bytes}")
    return ItemOutcome(output)


def _reached(job: AgentJob, steps: ItemSteps) -> str:
    limits, tokens = job.limits, steps.prompt_tokens + steps.completion_tokens
    if limits.tokens and tokens > limits.tokens:
        return f"it used {tokens} tokens, and its limit is {limits.tokens} (agent.max_tokens)"
    if steps.requests >= limits.steps:
        return f"it had no answer after {limits.steps} steps, its limit (agent.max_steps)"
    return f"it asked for more than {limits.tool_calls} calls of tools, its limit (agent.max_tool_calls)"


def _failure(error: BaseException, job: AgentJob) -> ItemOutcome:
    where = f"the model at {shown_url(job.model.base_url)}" if job.model.base_url else f"the model {job.model.name}"
    refusal = refusal_of(error)
    if refusal is not None:
        return ItemOutcome(error=refusal)
    if isinstance(error, ModelHTTPError):
        text = f"{where} answers with status {error.status_code}: {_shown(error.body or '')}"
        return ItemOutcome(error=text, passing=is_temporary(error.status_code))
    if isinstance(error, ModelConnectionError):
        return ItemOutcome(error=f"{where} cannot be reached: {_shown(error)}", passing=True)
    if isinstance(error, SandboxError):
        return ItemOutcome(error=f"no sandbox can be built for python on this machine: {error}")
    text = _shown(f"{type(error).__name__}: {error}")
    return ItemOutcome(error=text, passing=not isinstance(error, (AgentRunError, UserError)))


def _shown(value: object) -> str:
    """Return the text of others on one line, without what its URLs have in confidence."""
    return shown_text(one_line(value))[:_SHOWN]


def _first(error: BaseException) -> BaseException:
    """Return the first error of a group, which task groups make; those of a cancellation pass through.

    Raises:
        BaseException: It is none that an item can fail with.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, Exception):
        raise error
    return error
