"""Reads single values of the data as text or chat messages, and remembers what was assumed or left out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.tasks.chat_messages import ChatFormError, looks_like_messages, messages_in_text, messages_of

Messages = list[dict[str, Any]]

_LISTED = 5  # rows named in a note


@dataclass(slots=True)
class ValueReader:
    """Reads the values of one row after the other.

    Attributes:
        number: Number of the current row in the data.
        json_chats: Rows whose messages were JSON text.
        weighted: Rows with messages that ask not to be learned from.
    """

    number: int = 0
    json_chats: set[int] = field(default_factory=set)
    weighted: set[int] = field(default_factory=set)

    def content(self, value: Any, column: str) -> str | Messages | None:
        """Return text or chat messages in the form of chat templates, None for no value.

        Raises:
            UserError: It is neither, or messages that are not valid.
        """
        try:
            messages = self._messages(value)
        except ChatFormError as fault:
            raise UserError(f"row {self.number}, column '{column}': {fault}") from None
        if messages is None:
            return self.text(value, column)
        if any(_is_unwanted(message) for message in messages):
            self.weighted.add(self.number)
        return messages

    def text(self, value: Any, column: str) -> str | None:
        """Return a value as text, None when it is empty. Numbers count as text, dates are written in ISO form.

        Raises:
            UserError: It is a list, a mapping or bytes.
        """
        plain = value.item() if hasattr(value, "item") and hasattr(value, "dtype") else value
        if plain is None or plain != plain:  # noqa: PLR0124  # NaN and NaT differ from themselves
            return None
        if isinstance(plain, (Mapping, list, tuple, set, bytes, bytearray)) or hasattr(plain, "tolist"):
            found = f"{type(plain).__name__} values, not text: {str(plain)[:60]}"
            raise UserError(f"row {self.number}: column '{column}' holds {found}")
        if isinstance(plain, bool):
            return "true" if plain else "false"
        text = str(plain.isoformat()) if hasattr(plain, "isoformat") else str(plain)
        return text if text.strip() else None

    def tools(self, value: Any) -> str | None:
        """Return the tools of a chat as JSON text: a data set would fill their parameters with nulls of other rows.

        Raises:
            UserError: They are no JSON.
        """
        if value is None or value in ("", []):
            return None
        try:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            listed = isinstance(json.loads(text), list)
        except (ValueError, TypeError, RecursionError):
            listed = False
        if not listed:
            raise UserError(f"row {self.number}: column 'tools' holds no list of tools: {str(value)[:60]}")
        return text

    def notes(self) -> list[str]:
        """Return what was assumed, as text."""
        found = []
        if self.json_chats:
            found.append(f"{_rows(self.json_chats)} hold chat messages as JSON text, which is read as messages")
        if self.weighted:
            found.append(
                f"{_rows(self.weighted)} have messages with weight: 0 or train: false, which has no effect: the loss "
                "counts them too (training.assistant_only_loss counts answers only)"
            )
        return found

    def _messages(self, value: Any) -> Messages | None:
        if looks_like_messages(value):
            return messages_of(value)
        read = messages_in_text(value) if isinstance(value, str) else None
        if read is None:
            return None
        self.json_chats.add(self.number)
        return messages_of(read)


def as_turn(value: str | Messages, role: str) -> Messages:
    """Return chat messages; a text becomes the one message of `role`."""
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def broken_name(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """Return the first of `names` whose text is not valid Unicode (half of a surrogate pair), or None."""
    return next((name for name in names if _is_broken(row.get(name))), None)


def _is_broken(value: Any) -> bool:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return True
        return False
    if isinstance(value, Mapping):
        return any(_is_broken(part) for part in (*value, *value.values()))
    return isinstance(value, list) and any(_is_broken(part) for part in value)


def _is_unwanted(message: Mapping[str, Any]) -> bool:
    weight, train = message.get("weight"), message.get("train", message.get("training"))
    return (isinstance(weight, (int, float)) and weight == 0) or train is False


def _rows(numbers: set[int]) -> str:
    """Return e.g. `2 rows (0, 5)`."""
    shown = ", ".join(map(str, sorted(numbers)[:_LISTED]))
    more = ", ..." if len(numbers) > _LISTED else ""
    return f"{len(numbers)} row{'s' if len(numbers) > 1 else ''} ({shown}{more})"
