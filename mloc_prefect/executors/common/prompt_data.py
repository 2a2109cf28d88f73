"""Reads the prompts of a task from `spec.data`: list, dataset, graph_template [protocol 4.2, 4.7]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mloc_prefect.errors import ExecutionError
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.execution.wire import json_ready
from mloc_prefect.executors.chat.chat_rows import Question, QuestionColumns, question_of_item
from mloc_prefect.executors.common.shard_rows import rows_of_shard
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.sources.datasets_source import load_table
from mloc_prefect.plan.graph_template import filled_prompt
from mloc_prefect.tasks.chat_messages import ChatFormError, item_fault, messages_of, template_choice

if TYPE_CHECKING:
    from mloc_prefect.executors.sources.datasets_source import DataTable
    from mloc_prefect.executors.sources.source_lookup import SourceLookup
    from mloc_prefect.tasks.chat_messages import Message

_OWN_METADATA = ("prompt", "rendered_prompt")  # what the result itself says of a row
_ITEMS = "spec.data.items must be a list of strings for type == 'list'."


@dataclass(frozen=True, slots=True)
class Prompt:
    """One input row.

    Attributes:
        text: The prompt from the data, without a system prompt; "" for messages.
        metadata: Values that the result shows next to the output.
        error: Why the row cannot be processed, or None.
        messages: The messages of a chat, or None for a text.
        tools: Descriptions of the tools that its model may call, or None.
    """

    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    messages: list[Message] | None = None
    tools: list[dict[str, Any]] | None = None

    @classmethod
    def of(cls, asked: Question, metadata: dict[str, Any] | None = None) -> Prompt:
        """Return the row that asks a question."""
        return cls(asked.text, metadata or {}, asked.error, asked.messages, asked.tools)

    @property
    def shown(self) -> str | list[Message]:
        """What the result shows as the prompt: the text, or the messages."""
        return self.text if self.messages is None else self.messages


class Prompts(list[Prompt]):
    """The input rows of one task, or of one shard of it.

    Attributes:
        first: Index of the first row in the whole task; 0 unless this is a shard.
        notes: What of the data does not reach the result, as text.
    """

    first: int = 0
    notes: tuple[str, ...] = ()


def load_prompts(spec: Mapping[str, Any], upstream: Mapping[str, Any], sources: SourceLookup) -> Prompts:
    """Return the prompts of a task in order, or those of its shard when `spec.shard` names one [protocol 2.7].

    Args:
        spec: The resolved `spec` mapping; `spec.data` names the source of the prompts.
        upstream: Results of earlier stages by name, for `graph_template`.
        sources: Mirrors and local paths.

    Raises:
        UserError: There are no usable prompts; with the texts of protocol 4.2 where it defines them.
    """
    if not spec.get("data"):
        raise UserError("spec.data is required.")
    data = SpecReader(spec, "spec").child("data")
    kind, notes = data.get("type"), list[str]()
    if kind == "list":
        prompts = _from_list(data)
    elif kind == "dataset":
        chat, _ = template_choice(SpecReader(spec, "spec").child("inference").get("chat_template"))
        prompts = _from_table(load_table(data, sources), data, notes, chat=chat)
    elif kind == "graph_template":
        prompts = [_from_template(data, upstream or spec.get("_upstreamResults") or {})]
    else:
        raise UserError(f"Unsupported spec.data.type: {kind!r}")
    if not prompts:
        raise UserError("No prompts prepared. Check spec.data configuration.")
    rows, first = rows_of_shard(prompts, spec)
    found = Prompts(rows)
    found.first, found.notes = first, tuple(notes)
    return found


def _from_list(data: SpecReader) -> list[Prompt]:
    items = data.get("items")
    if not isinstance(items, list) or not all(isinstance(item, str) or item_fault(item) != "" for item in items):
        raise UserError(_ITEMS)
    asked = [_item_question(item, number) for number, item in enumerate(items)]
    extra = data.get("metadata", "items_metadata")
    if extra is None:
        return [Prompt.of(question) for question in asked]
    if not isinstance(extra, list) or len(extra) != len(items):
        found = f"{len(extra)} entries" if isinstance(extra, list) else type(extra).__name__
        raise UserError(f"spec.data.metadata must be a list as long as spec.data.items ({len(items)}), found {found}")
    return [Prompt.of(question, _as_metadata(more)) for question, more in zip(asked, extra, strict=True)]


def _item_question(item: Any, number: int) -> Question:
    try:
        return question_of_item(item, number)
    except ChatFormError as fault:
        raise UserError(f"spec.data.items[{number}] {fault}") from None


def _as_metadata(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    return {str(k): v for k, v in value.items()} if isinstance(value, Mapping) else {"value": value}


def _from_table(table: DataTable, data: SpecReader, notes: list[str], *, chat: bool) -> list[Prompt]:
    if not table.rows:
        return []
    columns = QuestionColumns.of(table.columns, table.rows, data.text("column"))
    aliases = _metadata_columns(table, data)
    for name in aliases:
        if name not in table.columns:
            raise UserError(f"Column '{name}' not found in dataset. Available: {list(table.columns)}")
    if data.flag("metadata_include_all", default=False):  # of named columns, planning tells
        notes += [
            f"column '{name}' is not in the metadata of the rows, where '{name}' is the prompt that the model read"
            for name in _OWN_METADATA
            if name in aliases and columns.path != (name,)
        ]
    return [
        Prompt.of(
            columns.question(row, number, chat=chat),
            {alias: _metadata_value(row.get(name), name, number) for name, alias in aliases.items()},
        )
        for number, row in enumerate(table.rows)
    ]


def _metadata_value(value: Any, column: str, number: int) -> Any:
    """Return a value as the result will show it; before any row is computed."""
    try:
        return json_ready(value)
    except TypeError as error:
        raise UserError(
            f"row {number}, column '{column}': {error}; leave it out of spec.data.metadata_columns"
        ) from None


def _metadata_columns(table: DataTable, data: SpecReader) -> dict[str, str]:
    """Return the columns to copy to the result, each with its name there [protocol 4.2, later part]."""
    if data.flag("metadata_include_all", default=False):
        return {name: name for name in table.columns}
    wanted = data.get("metadata_columns")
    if wanted is None:
        return {}
    if isinstance(wanted, Mapping):
        return {str(name): str(alias or name) for name, alias in wanted.items()}
    if isinstance(wanted, list) and all(isinstance(name, str) for name in wanted):
        return {name: name for name in wanted}
    raise data.error("metadata_columns", wanted, "a list of columns or a mapping of columns to names")


def _from_template(data: SpecReader, upstream: Mapping[str, Any]) -> Prompt:
    template = data.get("template")
    if not isinstance(template, Mapping):
        raise UserError("spec.data.template must be a mapping for type == 'graph_template'.")
    try:
        filled = filled_prompt(template, upstream)
        return Prompt(filled) if isinstance(filled, str) else Prompt("", messages=messages_of(filled))
    except ExecutionError as error:
        raise UserError(error.message) from None
    except ChatFormError as fault:
        raise UserError(f"spec.data.template: {fault}") from None
