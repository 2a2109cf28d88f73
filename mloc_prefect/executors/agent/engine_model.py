"""A model that this process has loaded with transformers, as the model of an agent. Imports torch inside functions."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from typing import TYPE_CHECKING, Any

from pydantic_ai.exceptions import UnexpectedModelBehavior
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.usage import RequestUsage

from mloc_prefect.execution.protocol import Cancelled
from mloc_prefect.executors.chat.chat_template import ChatOptions, ChatRenderer, RowError
from mloc_prefect.executors.common.rendering import PendingRow
from mloc_prefect.executors.common.sampling import Sampling

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mloc_prefect.executors.agent.agent_job import ModelAccess
    from mloc_prefect.executors.transformers.decoding import DecodedRow
    from mloc_prefect.executors.transformers.model_engine import Engine

_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*(?:</tool_call>|$)", re.DOTALL)
_ANSWER_TOKENS = 1024
_TEMPERATURE = 0.7
_FORM = """\
You can call functions. To call one, answer with nothing but
<tool_call>
{"name": <its name>, "arguments": <an object of its arguments>}
</tool_call>
The functions, with their arguments as JSON Schema:
"""


class EngineModel:
    """Answers the requests of agents with a loaded model, one at a time.

    Args:
        engine: The model.
        access: Sampling, and the name for messages.
    """

    def __init__(self, engine: Engine, access: ModelAccess) -> None:
        self._engine = engine
        self._access = access
        self._renderer = ChatRenderer(engine.tokenizer, access.name, ChatOptions())
        self._room = asyncio.Lock()

    @property
    def model(self) -> Any:
        """The model of the library."""
        return FunctionModel(self._answer, model_name=self._access.name)

    async def _answer(self, messages: Sequence[Any], info: Any) -> ModelResponse:
        tools = [_described(tool) for tool in info.function_tools]
        row = self._row(list(chat_of(messages)), tools)
        ended = threading.Event()
        async with self._room:
            try:
                answer = await asyncio.to_thread(self._generate, row, ended)
            finally:
                ended.set()  # the thread ends at its next token
        if answer.error is not None:
            raise UnexpectedModelBehavior(answer.error)
        usage = RequestUsage(input_tokens=answer.prompt_tokens, output_tokens=len(answer.tokens))
        return ModelResponse(parts=list(parts_of(answer.text, known=bool(tools))), usage=usage)

    def _row(self, chat: list[dict[str, Any]], tools: list[dict[str, Any]]) -> PendingRow:
        try:
            text = self._renderer.render(chat, tools or None)
            if tools and tools[0]["function"]["name"] not in text:  # a template that knows of no tools
                text = self._renderer.render(_with_tools(chat, tools))
        except RowError as error:
            raise UnexpectedModelBehavior(str(error)) from None
        tokens = self._engine.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        limit, window = self._access.max_response_tokens or _ANSWER_TOKENS, self._engine.window
        if window is not None:
            if len(tokens) >= window:
                text = f"the conversation has {len(tokens)} tokens, but the model reads at most {window}"
                raise UnexpectedModelBehavior(text)
            limit = min(limit, window - len(tokens))
        return PendingRow(0, tuple(tokens), limit)

    def _generate(self, row: PendingRow, ended: threading.Event) -> DecodedRow:
        from mloc_prefect.executors.transformers.decoding import generate

        temperature = _TEMPERATURE if self._access.temperature is None else self._access.temperature
        sampling = Sampling(
            max_new_tokens=row.limit, temperature=temperature, sample=temperature > 0, seed=self._access.seed
        )
        answers: list[DecodedRow] = []

        def check(_rows: int) -> None:
            if ended.is_set():
                raise Cancelled

        generate(self._engine, [row], sampling, on_token=check, on_answer=answers.append)
        return answers[0]


def chat_of(messages: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Yield the messages of an agent in the form of chat templates."""
    instructions = next((m.instructions for m in messages if getattr(m, "instructions", None)), None)
    if instructions:
        yield {"role": "system", "content": instructions}
    for message in messages:
        if message.kind == "response":
            yield _assistant(message)
            continue
        for part in message.parts:
            if part.part_kind == "tool-return":
                yield {"role": "tool", "name": part.tool_name, "content": part.model_response_str()}
            elif part.part_kind == "retry-feedback":
                yield {"role": "user", "content": part.model_response()}
            elif part.part_kind in {"user-prompt", "system-prompt"}:
                yield {"role": part.part_kind.partition("-")[0], "content": str(part.content)}


def parts_of(text: str, *, known: bool) -> Iterator[Any]:
    """Yield the parts of an answer: calls of tools in the form that most open models write, and text.

    Args:
        text: The answer.
        known: Whether the model has tools; without them everything is text.
    """
    calls = [found for match in _CALL.finditer(text) if (found := _call(match[1]))] if known else []
    rest = _CALL.sub("", text).strip() if calls else text
    if rest or not calls:
        yield TextPart(rest)
    yield from calls


def _call(text: str) -> ToolCallPart | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    name, arguments = found.get("name"), found.get("arguments", found.get("parameters"))
    return ToolCallPart(str(name), arguments if isinstance(arguments, dict) else {}) if name else None


def _assistant(message: Any) -> dict[str, Any]:
    text = "".join(part.content for part in message.parts if part.part_kind == "text")
    calls = [
        {"type": "function", "function": {"name": part.tool_name, "arguments": part.args_as_dict()}}
        for part in message.parts
        if part.part_kind == "tool-call"
    ]
    return {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}


def _described(tool: Any) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description or "", "parameters": tool.parameters_json_schema}
    return {"type": "function", "function": function}


def _with_tools(chat: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a chat whose first message describes the tools, and whose calls and results are plain text."""
    told = _FORM + "\n".join(json.dumps(tool["function"]) for tool in tools)
    plain = []
    for message in chat:
        text = str(message["content"])
        for call in message.get("tool_calls", ()):
            text += f"\n<tool_call>\n{json.dumps(call['function'])}\n</tool_call>"
        role = "user" if message["role"] == "tool" else message["role"]
        shown = f"<tool_response>\n{text}\n</tool_response>" if message["role"] == "tool" else text.strip()
        plain.append({"role": role, "content": shown})
    if plain and plain[0]["role"] == "system":
        return [{"role": "system", "content": f"{plain[0]['content']}\n\n{told}"}, *plain[1:]]
    return [{"role": "system", "content": told}, *plain]
