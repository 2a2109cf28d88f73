"""The steps of one item: counts them, records them, and replays those that an earlier attempt finished.

`JournaledModel` and `JournaledToolset` are the only way from an agent to its model and its tools.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic_ai.exceptions import ModelRetry, ToolFailed
from pydantic_ai.messages import ModelMessagesTypeAdapter
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.toolsets import WrapperToolset
from pydantic_core import to_json

from mloc_prefect.execution.failures import one_line
from mloc_prefect.executors.agent.step_journal import step_digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.executors.agent.step_journal import StepJournal

_NAME_SHOWN = 200  # of a tool: a model can make one up
_OF_ONE_RUN = frozenset({"timestamp", "run_id", "conversation_id", "metadata"})
"""Fields of messages that differ between two runs of the same history."""

_OWN_CLOCK = frozenset({"python"})
"""Tools that end within the limit of time by themselves, and tell more about it."""


@dataclass(slots=True)
class ItemSteps:
    """What happened in one item so far.

    Attributes:
        key: Row key of the item.
        journal: Where steps are recorded.
        tool_seconds: Time of one call of a tool.
        tool_bytes: Bytes that one call of a tool may give to the model.
        on_step: Called after each step that was really done.
        requests: Answers of the model, replayed ones included.
        calls: Calls of tools, replayed ones included.
        replayed: Steps that were read from the journal.
        prompt_tokens: Tokens that the model has read.
        completion_tokens: Tokens that it has written.
        trace: The steps in order, for people: kind, title and text.
    """

    key: str
    journal: StepJournal
    tool_seconds: float
    tool_bytes: int
    on_step: Callable[[], None]
    requests: int = 0
    calls: int = 0
    replayed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    trace: list[tuple[str, str, str]] = field(default_factory=list)
    _repeats: Counter[str] = field(default_factory=Counter)

    def recorded(self, step: str) -> Any:
        """Return the value of a finished step, or None."""
        found = self.journal.recorded(self.key, step)
        self.replayed += found is not None
        return found

    def record(self, step: str, value: Any) -> None:
        """Record a finished step."""
        self.journal.append(self.key, step, value)
        self.on_step()

    def tool_step(self, name: str, arguments: dict[str, Any], call: str | None) -> str:
        """Return the identity of a call: it belongs to one answer of the model, in which calls may be equal."""
        step = step_digest("tool", self.requests, name, json.loads(to_json(arguments)), call)
        self._repeats[step] += 1
        return f"{step}.{self._repeats[step]}"

    def note_answer(self, response: Any) -> None:
        """Count and show an answer of the model."""
        self.requests += 1
        self.prompt_tokens += response.usage.input_tokens or 0
        self.completion_tokens += response.usage.output_tokens or 0
        for part in response.parts:
            if part.part_kind == "text" and part.content.strip():
                self.trace.append(("answer", "The model answers", part.content))
            elif part.part_kind == "tool-call":
                self.trace.append(
                    ("call", f"The model calls {one_line(part.tool_name, _NAME_SHOWN)}", part.args_as_json_str())
                )

    def note_result(self, name: str, text: str) -> None:
        """Count and show what a tool returned."""
        self.calls += 1
        self.trace.append(("result", f"{one_line(name, _NAME_SHOWN)} returns", text))


class JournaledModel(WrapperModel):  # type: ignore[misc]  # untyped for those without the library
    """A model whose finished requests are not sent again.

    Args:
        wrapped: The model.
        steps: The item that it works on.
    """

    def __init__(self, wrapped: Any, steps: ItemSteps) -> None:
        super().__init__(wrapped)
        self._steps = steps

    async def request(self, messages: list[Any], model_settings: Any, model_request_parameters: Any) -> Any:
        """Return the recorded answer to these messages, else ask the model."""
        steps = self._steps
        tools = sorted(tool.name for tool in model_request_parameters.function_tools)
        history = ModelMessagesTypeAdapter.dump_python(messages, mode="json")
        step = step_digest("model", self.model_name, tools, _lasting(history))
        found = steps.recorded(step)
        if found is not None:
            response = ModelMessagesTypeAdapter.validate_python([found])[0]
        else:
            response = await self.wrapped.request(messages, model_settings, model_request_parameters)
            steps.record(step, ModelMessagesTypeAdapter.dump_python([response], mode="json")[0])
        steps.note_answer(response)
        return response


@dataclass
class JournaledToolset(WrapperToolset):  # type: ignore[misc]  # untyped for those without the library
    """Tools whose finished calls are not repeated; each call has a limit of time and of output.

    Attributes:
        steps: The item that they work for.
    """

    steps: ItemSteps = None  # type: ignore[assignment]  # the base class has fields with defaults

    async def call_tool(self, name: str, tool_args: dict[str, Any], ctx: Any, tool: Any) -> Any:
        """Return the recorded result of this call, else call the tool; what it refuses is a result, too."""
        steps = self.steps
        step = steps.tool_step(name, tool_args, ctx.tool_call_id)
        found = steps.recorded(step)
        if found is None:
            found = await self._outcome(name, tool_args, ctx, tool)
            steps.record(step, found)
        steps.note_result(name, found)
        return found

    async def _outcome(self, name: str, tool_args: dict[str, Any], ctx: Any, tool: Any) -> str:
        limit = None if name in _OWN_CLOCK else self.steps.tool_seconds
        try:
            async with asyncio.timeout(limit):
                value = await self.wrapped.call_tool(name, tool_args, ctx, tool)
        except (ModelRetry, ToolFailed) as refusal:
            return bounded(f"error: {refusal}", self.steps.tool_bytes)
        except TimeoutError:
            return f"error: {name} was ended after {self.steps.tool_seconds:g} s"
        text = value if isinstance(value, str) else to_json(value, fallback=str).decode()
        return bounded(text, self.steps.tool_bytes)


def bounded(text: str, most: int) -> str:
    """Return a text of at most `most` bytes, with a note if that is only its beginning."""
    data = text.encode("utf-8", "replace")
    if len(data) <= most:
        return text
    return f"{data[:most].decode('utf-8', 'ignore')}\n... cut: {len(data)} bytes in all"


def _lasting(value: Any) -> Any:
    """Return messages without what differs between two runs of the same history."""
    if isinstance(value, dict):
        return {k: _lasting(v) for k, v in value.items() if k not in _OF_ONE_RUN}
    return [_lasting(v) for v in value] if isinstance(value, list) else value
