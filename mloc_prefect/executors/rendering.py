"""From the user's prompts to what the model reads: system prompt, chat messages, token ids."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.batching import Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.executors.data import Prompt
    from mloc_prefect.executors.fields import Fields


@dataclass(frozen=True, slots=True)
class Reader:
    """What turns text into tokens.

    Attributes:
        tokenizer: The tokenizer of the model.
        window: Most tokens of prompt and answer together, or None when it has no bound.
        identifier: The model as the user wrote it.
    """

    tokenizer: Any
    window: int | None
    identifier: str


@dataclass(frozen=True, slots=True)
class Style:
    """How prompts are dressed.

    Attributes:
        system: Text put before each prompt with one newline, or, with `chat`, sent as the system message.
        chat: Use the chat template of the tokenizer (`inference.chat_template: true`).
    """

    system: str | None = None
    chat: bool = False

    @classmethod
    def of(cls, spec: Fields) -> Style:
        """Read a spec. [protocol 4.2].

        A prompt from a `graph_template` gets the system prompt in front only with `append_system_prompt`; as a
        message of a chat it is always sent.
        """
        inference, data = spec.child("inference"), spec.child("data")
        value = inference.get("system_prompt", "systemPrompt")
        chat = inference.flag("chat_template", default=False)
        if data.get("type") == "graph_template" and not chat:
            wanted = data.child("template").flag("append_system_prompt", default=False)
            value = value if wanted else None
        return cls(str(value) if value else None, chat)

    def render(self, prompt: str) -> str:
        """Return what identifies the input of the model: the text itself, or the messages as JSON."""
        if self.chat:
            return json.dumps(self.messages(prompt))
        return f"{self.system}\n{prompt}" if self.system else prompt

    def messages(self, prompt: str) -> list[dict[str, str]]:
        """Return the messages of one chat."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": prompt}]

    def text(self, prompt: str, reader: Reader) -> str:
        """Return the text that is turned into tokens.

        Raises:
            UserError: A chat is asked for and the tokenizer has no template for it, or the template refuses.
        """
        if not self.chat:
            return self.render(prompt)
        from jinja2 import TemplateError

        if not reader.tokenizer.chat_template:
            raise UserError(
                f"spec.inference.chat_template is true, but the tokenizer of '{reader.identifier}' has no chat "
                "template; remove the switch or use an instruction-tuned model"
            )
        try:
            text: str = reader.tokenizer.apply_chat_template(
                self.messages(prompt), tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:  # e.g. a model whose template knows no system role
            raise UserError(f"the chat template of '{reader.identifier}' refuses the prompt: {error}") from None
        return text


class RowError(Exception):
    """One row cannot be processed; the others can."""


def work_of(index: int, prompt: Prompt, style: Style, reader: Reader, max_new_tokens: int) -> tuple[str, Work]:
    """Return the text of one row and its tokens.

    Raises:
        RowError: The row has no prompt, no tokens, or more than the model reads.
        UserError: From `Style.text`.
    """
    if prompt.error:
        raise RowError(prompt.error)
    text = style.text(prompt.text, reader)
    tokens = _tokens(text, style, reader)
    limit = max_new_tokens
    if reader.window is not None:
        if len(tokens) >= reader.window:
            raise RowError(f"the prompt has {len(tokens)} tokens, but the model reads at most {reader.window}")
        limit = min(limit, reader.window - len(tokens))
    return text, Work(index, tuple(tokens), limit)


def _tokens(text: str, style: Style, reader: Reader) -> Sequence[int]:
    tokenizer: Any = reader.tokenizer
    try:
        tokens: list[int] = tokenizer(text, add_special_tokens=not style.chat, verbose=False)["input_ids"]
    except (TypeError, UnicodeEncodeError):  # half of a surrogate pair, which JSON lets through
        raise RowError("the prompt is not valid Unicode text") from None
    if not tokens and tokenizer.bos_token_id is not None:
        tokens = [tokenizer.bos_token_id]
    if not tokens:
        raise RowError("the prompt is empty")
    return tokens
