"""What a row of the data asks: a text, or messages with tools. Nothing else becomes a prompt. [protocol 4.2]."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.execution.wire import json_ready
from mloc_prefect.tasks.chat_messages import (
    CHAT_COLUMNS,
    ChatFormError,
    is_missing,
    item_column,
    kind_of,
    looks_like_messages,
    media_column,
    messages_in_text,
    messages_of,
    system_first,
    tools_of,
)

if TYPE_CHECKING:
    from mloc_prefect.tasks.chat_messages import Message

_WANTED = "not text, a number or chat messages"
_SYSTEM = "system_prompt"
_TOOLS = "tools"


@dataclass(frozen=True, slots=True)
class Question:
    """What one row asks.

    Attributes:
        text: The prompt, "" for messages.
        messages: The messages, or None for a text.
        tools: Descriptions of the tools that the model may call, or None.
        error: Why the row asks nothing, or None.
    """

    text: str = ""
    messages: list[Message] | None = None
    tools: list[dict[str, Any]] | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class QuestionColumns:
    """The columns of a table that hold its questions.

    Attributes:
        name: The column as the user wrote it; with dots, a field of a column of mappings.
        path: Its keys in a row.
        system: Name of the column beside it that holds system prompts, or None.
        tools: Whether a column of tools stands beside it.
    """

    name: str
    path: tuple[str, ...]
    system: str | None
    tools: bool

    @classmethod
    def of(cls, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], asked: str | None) -> QuestionColumns:
        """Return the columns of a table.

        Without a name it is `text`, else the first of `messages`, `conversations` and `prompt` that exists.

        Args:
            columns: All columns of the table.
            rows: Its rows.
            asked: `data.column`, or None.

        Raises:
            UserError: There is no such column. [protocol 4.2]
        """
        known = ("text", *CHAT_COLUMNS, "prompt")
        name = asked or next((column for column in known if column in columns), "text")
        path: tuple[str, ...] = (name,)
        beside: Sequence[str] = columns
        if name not in columns:
            head, *below = name.split(".")
            if head not in columns or not below:
                raise UserError(f"Column '{name}' not found in dataset. Available: {list(columns)}")
            path = (head, *below)
            beside = list(dict.fromkeys(key for row in rows for key in _inside(row, path[:-1])))
        # Other columns mean nothing by their names: only beside these two is a system prompt what it says.
        has_system = _SYSTEM in beside and path[-1] in (*CHAT_COLUMNS, "prompt")
        return cls(name, path, _SYSTEM if has_system else None, _TOOLS in beside)

    def question(self, row: Mapping[str, Any], number: int, *, chat: bool) -> Question:
        """Return what a row asks.

        Args:
            row: The row.
            number: Its number, for messages.
            chat: Whether every row is a chat (`inference.chat_template`).

        Raises:
            UserError: It holds what cannot be asked.
        """
        place = f"row {number}, column '{self.name}'"
        holder = _inside(row, self.path[:-1])
        asked = _question(holder.get(self.path[-1]), place, empty=f"column '{self.name}' has no value in this row")
        if asked.error is not None:
            return asked
        if asked.messages is not None and (media := media_column(holder, asked.messages)) is not None:
            raise UserError(f"spec.data: row {number}, column '{media}' stands beside messages, and only text is read")
        system = self._system(holder, number)
        is_chat = chat or self.system is not None or asked.messages is not None
        tools = _read_tools(holder.get(_TOOLS), f"row {number}, column '{_TOOLS}'") if self.tools and is_chat else None
        return _joined(asked, system, tools, place, chat=self.system is not None)

    def _system(self, holder: Mapping[str, Any], number: int) -> str | None:
        if self.system is None:
            return None
        found = _question(holder.get(self.system), f"row {number}, column '{self.system}'", empty="")
        if found.messages is not None:
            raise UserError(f"spec.data: row {number}, column '{self.system}' holds messages, not text")
        return found.text or None


def question_of_item(item: Any, number: int) -> Question:
    """Return what an entry of `data.items` asks: a text, messages, or a mapping with `messages` and `tools`.

    Raises:
        ChatFormError: It is none of these.
    """
    if isinstance(item, str):
        return Question(item)
    if isinstance(item, list):
        return Question(messages=messages_of(item))
    if not isinstance(item, Mapping):
        raise ChatFormError(f"holds {kind_of(item)}, {_WANTED}")
    name = item_column(item)
    value = item[name]
    asked = Question(value) if isinstance(value, str) and name == "prompt" else Question(messages=messages_of(value))
    tools = tools_of(item.get(_TOOLS))
    return _joined(asked, item.get(_SYSTEM) or None, tools, f"items[{number}]", chat=_SYSTEM in item)


def _joined(
    asked: Question, system: str | None, tools: list[dict[str, Any]] | None, place: str, *, chat: bool
) -> Question:
    """Return the question with its system prompt and tools; a text with either of them is a chat."""
    messages = asked.messages
    if messages is None and (chat or tools):
        messages = [{"role": "user", "content": asked.text}]
    if messages is None:
        return asked
    try:
        return Question("", system_first(system, messages), tools)
    except ChatFormError as fault:
        raise UserError(f"spec.data: {place} {fault}") from None


def _question(value: Any, place: str, *, empty: str) -> Question:
    """Return what the value of a cell asks; `empty` is the error of a cell without one."""
    if is_missing(value) or (isinstance(value, str) and not value):
        return Question(error=empty)
    try:
        messages = messages_in_text(value) if isinstance(value, str) else value
        if looks_like_messages(messages):
            return Question(messages=json_ready(messages_of(messages)))
    except (ChatFormError, TypeError) as fault:
        raise UserError(f"spec.data: {place}: {fault}") from None
    text = _text(value)
    if text is None:
        more = ""
        if isinstance(value, Mapping):
            held = next((name for name in CHAT_COLUMNS if looks_like_messages(value.get(name))), None)
            column = place.rpartition("column ")[2].strip("'")
            more = f"; to ask its messages, write column: {column}.{held}" if held else ""
        raise UserError(f"spec.data: {place} holds {kind_of(value)}, {_WANTED}{more}")
    return Question(text)


def _text(value: Any) -> str | None:
    """Return text, numbers, dates and times as text, None for anything else."""
    if isinstance(value, str):
        return value
    if not isinstance(value, bool) and hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()  # a scalar of numpy
    if isinstance(value, (date, time)):  # a datetime is a date, too
        return value.isoformat()
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    return None


def _read_tools(value: Any, place: str) -> list[dict[str, Any]] | None:
    try:
        return cast("list[dict[str, Any]] | None", json_ready(tools_of(value)))
    except (ChatFormError, TypeError) as fault:
        raise UserError(f"spec.data: {place} {fault}") from None


def _inside(row: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    here: Any = row
    for name in path:
        here = here.get(name) if isinstance(here, Mapping) else None
    return here if isinstance(here, Mapping) else {}
