"""The conversation of an agent in the form of chat templates, and what an answer of such a model says."""

from __future__ import annotations

import pytest
from pydantic_ai.messages import (
    ModelRequest,
    ModelResponse,
    RetryFeedbackPart,
    RetryInfo,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from mloc_prefect.executors.agent.engine_model import chat_of, parts_of


def test_a_conversation_becomes_messages() -> None:
    call = ToolCallPart("add", {"a": 1}, tool_call_id="c")
    history = [
        ModelRequest([UserPromptPart("what is 1 + 1?")], instructions="be brief"),
        ModelResponse([TextPart("wait"), call]),
        ModelRequest([ToolReturnPart("add", "2", tool_call_id="c")], instructions="be brief"),
        ModelResponse([TextPart("2")]),
        ModelRequest([RetryFeedbackPart("no", retry=RetryInfo("no_output"))], instructions="be brief"),
    ]
    chat = list(chat_of(history))
    assert [message["role"] for message in chat] == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert chat[2]["tool_calls"] == [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    assert chat[3] == {"role": "tool", "name": "add", "content": "2"}
    assert "no" in chat[5]["content"]


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("plain", "plain", []),
        ('<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>', None, [("add", {"a": 1})]),
        ('first\n<tool_call>{"name": "a", "parameters": {}}</tool_call>', "first", [("a", {})]),
        ('<tool_call>{"name": "a"}</tool_call><tool_call>{"name": "b"}', None, [("a", {}), ("b", {})]),
        ("<tool_call>{not json}</tool_call>", "<tool_call>{not json}</tool_call>", []),
        ('<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"arguments": {}}</tool_call>', []),
    ],
)
def test_an_answer_has_text_and_calls(text: str, said: str | None, calls: list[tuple[str, dict[str, int]]]) -> None:
    parts = list(parts_of(text, known=True))
    assert [part.content for part in parts if isinstance(part, TextPart)] == ([said] if said is not None else [])
    assert [(part.tool_name, part.args) for part in parts if isinstance(part, ToolCallPart)] == calls


def test_without_tools_everything_is_text() -> None:
    text = '<tool_call>{"name": "a"}</tool_call>'
    assert [part.content for part in parts_of(text, known=False)] == [text]
