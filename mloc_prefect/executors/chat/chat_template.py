"""Renders messages with a chat template: that of the model, or that of the spec. [protocol 4.2]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.failures import one_line
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.tasks.chat_messages import (
    is_template,
    looks_like_messages,
    parsed_template,
    template_choice,
    template_fault,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mloc_prefect.executors.common.spec_reader import SpecReader
    from mloc_prefect.tasks.chat_messages import Message

_CHATS = {"messages", "prompt", "completion", "chosen", "rejected"}  # of rows to train on
_MARKS = ("first-part", "second-part")


class RowError(Exception):
    """One row cannot be processed; others can."""


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How messages become text.

    Attributes:
        template: A Jinja template instead of that of the model, or None.
        arguments: Variables for the template (`inference.chat_template_kwargs`).
        add_generation_prompt: Whether the text ends with the beginning of an answer.
        continue_final_message: Whether the answer continues the last message.
    """

    template: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False

    @classmethod
    def of(cls, inference: SpecReader, locate: Any = None) -> ChatOptions:
        """Read `spec.inference`.

        Args:
            inference: The reader of it.
            locate: Returns the path of a file that the spec names.

        Raises:
            UserError: A value is invalid, or the template's file cannot be read.
        """
        _, named = template_choice(inference.get("chat_template"))
        continues = inference.flag("continue_final_message", default=False)
        begins = inference.flag("add_generation_prompt", default=not continues)
        if continues and begins:
            raise UserError(f"{inference.path}: continue_final_message and add_generation_prompt exclude each other")
        arguments = inference.child("chat_template_kwargs").data
        return cls(_template_text(named, inference, locate) if named else None, arguments, begins, continues)

    def key(self) -> dict[str, Any]:
        """Return the values that differ from the defaults, for the keys of rows."""
        found: dict[str, Any] = {}
        if self.template is not None:
            found["template"] = self.template
        if self.arguments:
            found["arguments"] = dict(self.arguments)
        if self.continue_final_message or not self.add_generation_prompt:
            found["end"] = [self.add_generation_prompt, self.continue_final_message]
        return found


class ChatRenderer:
    """Renders the messages of one task.

    Args:
        tokenizer: The tokenizer of the model.
        identifier: The model as the user wrote it.
        options: How to render.
    """

    def __init__(self, tokenizer: Any, identifier: str, options: ChatOptions) -> None:
        self._tokenizer = tokenizer
        self._identifier = identifier
        self._options = options
        self._reads_parts: dict[str, bool] = {}

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        """Return the text that `apply_chat_template` makes of the messages.

        Content in parts of text is joined with line breaks, as vLLM does, where the template does not read parts.

        Raises:
            UserError: There is no template, or it is no Jinja template.
            RowError: The template refuses these messages.
        """
        options = self._options
        if options.template is None and not self._tokenizer.chat_template:
            raise UserError(
                f"a row is a chat, but the tokenizer of '{self._identifier}' has no chat template; "
                "set inference.chat_template to a template (text or file), or use an instruction-tuned model"
            )
        return self._apply(
            self.readable(messages),
            list(tools) if tools else None,
            add_generation_prompt=options.add_generation_prompt,
            continue_final_message=options.continue_final_message,
        )

    def readable(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages with parts of text joined where the template does not read parts."""
        return [self._with_known_content(message) for message in messages]

    def unread_arguments(self) -> list[str]:
        """Return the names in `chat_template_kwargs` that the template does not read."""
        if not self._options.arguments:
            return []
        from jinja2 import TemplateError, meta

        source = self._options.template or self._tokenizer.chat_template
        sources = source.values() if isinstance(source, Mapping) else [source or ""]
        read: set[str] = set()
        for text in sources:
            try:
                read |= meta.find_undeclared_variables(parsed_template(text))
            except TemplateError:  # tags that we do not know: nothing can be said
                return []
        return sorted(set(self._options.arguments) - read)

    def _apply(self, messages: Sequence[Message], tools: Any, **ends: bool) -> str:
        from jinja2 import TemplateError, TemplateSyntaxError

        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages),
                tools=tools,
                chat_template=self._options.template,
                tokenize=False,
                **ends,
                **self._options.arguments,
            )
        except TemplateSyntaxError as error:
            raise UserError(f"the chat template is not valid, line {error.lineno}: {one_line(error)}") from None
        except (TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            # Templates are code: they refuse rows with errors of their own, and fail at rows that they do not expect.
            problem = f"the chat template of '{self._identifier}' refuses the prompt: {one_line(error)}"
            raise RowError(problem) from None
        return text

    def _with_known_content(self, message: Message) -> Message:
        content = message.get("content")
        if not isinstance(content, list) or self._takes_parts(message["role"]):
            return message
        return {**message, "content": "\n".join(part["text"] for part in content)}

    def _takes_parts(self, role: str) -> bool:
        """Return whether the template prints the texts of parts, and not the parts themselves."""
        if role not in self._reads_parts:
            parts = [{"type": "text", "text": mark} for mark in _MARKS]
            asked: list[Message] = [{"role": "user", "content": "x"}]
            tried: Message = {"role": role, "content": parts}
            chat = [tried] if role == "user" else [tried, *asked] if role == "system" else [*asked, tried]
            try:
                text = self._apply(chat, None, add_generation_prompt=False)
            except RowError:
                text = ""
            self._reads_parts[role] = all(mark in text for mark in _MARKS) and not any(
                form in text for form in ("'text'", '"text"')
            )
        return self._reads_parts[role]


def with_known_content(rows: Sequence[dict[str, Any]], tokenizer: Any) -> None:
    """Join parts of text in the messages of rows, in place, where the template of the tokenizer does not read parts."""
    renderer = ChatRenderer(tokenizer, "", ChatOptions())
    for row in rows:
        for name in _CHATS & row.keys():
            if looks_like_messages(row[name]):
                row[name] = renderer.readable(row[name])


def _template_text(named: str, inference: SpecReader, locate: Any) -> str:
    """Return the template that the spec names, as text or by the path of its file."""
    place = f"{inference.path}.chat_template"
    if fault := template_fault(named):
        raise UserError(f"{place}: {fault}")
    if is_template(named):
        return named
    if locate is None:
        raise UserError(f"{place} names a file, which cannot be read here: {named}")
    file: Path = locate(named.strip())
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{place}: {named} cannot be read: {one_line(error)}") from None
    if (fault := template_fault(text)) or not is_template(text):
        raise UserError(f"{place}: {named}: {fault or 'holds no Jinja template'}")
    return text
