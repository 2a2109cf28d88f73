"""From prompts to model input: system prompt, chat messages, token ids."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mloc_prefect.executors.chat.chat_template import ChatOptions, ChatRenderer, RowError
from mloc_prefect.tasks.chat_messages import SYSTEM_ROLES, template_choice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.executors.common.prompt_data import Prompt
    from mloc_prefect.executors.common.spec_reader import SpecReader
    from mloc_prefect.executors.sources.source_lookup import SourceLookup
    from mloc_prefect.tasks.chat_messages import Message


@dataclass(frozen=True, slots=True)
class PromptRenderer:
    """Tokenizer of a loaded model, and the limits of its input.

    Attributes:
        tokenizer: The tokenizer of the model.
        window: Largest number of tokens of prompt and answer together, or None when unlimited.
        identifier: The model as the user wrote it.
    """

    tokenizer: Any
    window: int | None
    identifier: str


@dataclass(frozen=True, slots=True)
class RenderStyle:
    """How prompts are turned into text.

    Attributes:
        system: Text put before each prompt with a newline, or sent as the system message with `chat`.
        chat: Whether every row is a chat (`inference.chat_template`); rows of messages are always.
        options: How messages become text.
    """

    system: str | None = None
    chat: bool = False
    options: ChatOptions = field(default_factory=ChatOptions)

    @classmethod
    def of(cls, spec: SpecReader, sources: SourceLookup | None = None) -> RenderStyle:
        """Read a spec [protocol 4.2].

        The system prompt precedes a prompt from a `graph_template` only with `append_system_prompt`; as a chat message
        it is always sent.

        Args:
            spec: The resolved spec.
            sources: Where the file of a chat template is looked for.

        Raises:
            UserError: What it says of chats is invalid.
        """
        inference, data = spec.child("inference"), spec.child("data")
        value = inference.get("system_prompt", "systemPrompt")
        chat, _ = template_choice(inference.get("chat_template"))
        options = ChatOptions.of(inference, sources.local if sources else None)
        if data.get("type") == "graph_template" and not chat:
            wanted = data.child("template").flag("append_system_prompt", default=False)
            value = value if wanted else None
        return cls(str(value) if value else None, chat, options)

    def is_chat(self, prompt: Prompt) -> bool:
        """Return whether the chat template makes the text of this row."""
        return self.chat or prompt.messages is not None

    def render(self, prompt: Prompt) -> str:
        """Return what identifies the input of the model: the text, or the messages as JSON."""
        if prompt.messages is not None:
            return json.dumps({"messages": self.messages(prompt), "tools": prompt.tools})
        if self.chat:
            return json.dumps(self.messages(prompt))
        return f"{self.system}\n{prompt.text}" if self.system else prompt.text

    def messages(self, prompt: Prompt) -> list[Message]:
        """Return the messages of one chat; a system message of its own takes the place of the system prompt."""
        own = prompt.messages
        if own is None:
            own = [{"role": "user", "content": prompt.text}]
        if self.system and own[0]["role"] not in SYSTEM_ROLES:
            return [{"role": "system", "content": self.system}, *own]
        return own

    def replaces_system(self, prompt: Prompt) -> bool:
        """Return whether a row has a system message, so that `inference.system_prompt` does not reach its model."""
        own = prompt.messages
        return bool(self.system and own and own[0]["role"] in SYSTEM_ROLES and own[0]["content"] != self.system)

    def text(self, prompt: Prompt, renderer: ChatRenderer) -> str:
        """Return the text to tokenize.

        Raises:
            UserError: The row is a chat, and there is no chat template.
            RowError: The template refuses the row.
        """
        if not self.is_chat(prompt):
            return self.render(prompt)
        return renderer.render(self.messages(prompt), prompt.tools)


@dataclass(frozen=True, slots=True)
class PendingRow:
    """One row that is not computed yet.

    Attributes:
        index: Index of the row in the input.
        tokens: The token ids of its prompt.
        limit: Largest number of tokens that it may generate.
    """

    index: int
    tokens: tuple[int, ...]
    limit: int

    @property
    def size(self) -> int:
        """Largest number of tokens in its cache."""
        return len(self.tokens) + self.limit


def tokenize_prompt(
    index: int, prompt: Prompt, style: RenderStyle, reader: PromptRenderer, renderer: ChatRenderer, max_new_tokens: int
) -> tuple[str, PendingRow]:
    """Return the text of one row and its tokens.

    Raises:
        RowError: The row has no prompt, no tokens, or more tokens than the model reads.
        UserError: From `RenderStyle.text`.
    """
    if prompt.error:
        raise RowError(prompt.error)
    text = style.text(prompt, renderer)
    tokens = _tokens(text, reader, chat=style.is_chat(prompt))
    limit = max_new_tokens
    if reader.window is not None:
        if len(tokens) >= reader.window:
            raise RowError(f"the prompt has {len(tokens)} tokens, but the model reads at most {reader.window}")
        limit = min(limit, reader.window - len(tokens))
    return text, PendingRow(index, tuple(tokens), limit)


def _tokens(text: str, reader: PromptRenderer, *, chat: bool) -> Sequence[int]:
    tokenizer: Any = reader.tokenizer
    try:
        tokens: list[int] = tokenizer(text, add_special_tokens=not chat, verbose=False)["input_ids"]
    except (TypeError, UnicodeEncodeError):  # half of a surrogate pair, which JSON allows
        raise RowError("the prompt is not valid Unicode text") from None
    if not tokens and tokenizer.bos_token_id is not None:
        tokens = [tokenizer.bos_token_id]
    if not tokens:
        raise RowError("the prompt is empty")
    return tokens
