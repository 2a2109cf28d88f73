"""`spec.data` of task types that answer prompts: dataset, list, graph_template [protocol 4.2, 4.7]."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from mloc_prefect.diagnostics.diagnostic import did_you_mean
from mloc_prefect.tasks.base import SpecModel, SpecProblem
from mloc_prefect.tasks.chat_messages import ChatFormError, messages_of
from mloc_prefect.tasks.fields import (
    Count,
    ExactText,
    Flag,
    Free,
    ItemText,
    Text,
    Texts,
    block,
    is_deferred,
    item,
    prompt_item,
    rows,
    whole,
)
from mloc_prefect.tasks.postprocess.export_rules import DEFAULT_RULES, SOURCES, WANTED, rule_fault, unknown_fields
from mloc_prefect.urls import scheme_of

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA_TYPES = ("dataset", "list", "graph_template")
BRIEFING = "two_column_briefing"
"""The only graph template that is built in."""

_OWN_METADATA = ("prompt", "rendered_prompt")
_ITEMS = "spec.data.items must be a list of strings for type == 'list'."


class TemplateOptions(SpecModel):
    """`data.template.options`."""

    intro: Texts | None = None
    closing: Texts | None = None
    role: Text | None = None


class TemplateColumn(SpecModel):
    """One of `data.template.columns`."""

    label: Text | None = None
    expr: Text | None = None
    node: Text | None = None
    path: Text | None = None
    default: Any = None

    def label_or(self, index: int) -> str:
        """Return the label that the template shows; `index` counts from 0."""
        return (self.label or "").strip() or f"Column {index + 1}"


class GraphTemplate(SpecModel):
    """`data.template`."""

    name: Text = BRIEFING
    text: Text | None = None
    messages: Annotated[list[Any] | None, rows("graph_template.template.messages must be a list of messages.")] = None
    columns: Annotated[
        list[Annotated[TemplateColumn, item("Each column definition must be a mapping.")]] | None,
        rows("graph_template.template.columns must be a non-empty list."),
    ] = None
    options: Annotated[TemplateOptions, block()] = TemplateOptions()
    append_system_prompt: Flag = False

    def problems(self, path: tuple[str, ...]) -> Iterator[SpecProblem]:
        """Yield problems of the template at `path`."""
        columns = self.columns or []
        if not columns:
            message = "graph_template.template.columns must be a non-empty list."
            yield SpecProblem((*path, "columns"), "bad-template", message, "add columns with a label and an expr")
        for index, column in enumerate(columns):
            if not column.expr and not (column.node and column.path):
                message = f"Column '{column.label_or(index)}' is missing an expr/node+path definition."
                fix = "add expr: <stage>.result.items[0].output"
                yield SpecProblem((*path, "columns", index), "bad-template", message, fix)
        yield from self._message_problems(path)
        if self.messages is not None:
            return
        if self.name == BRIEFING and (self.text or "").strip():
            message = f"text is not read: the template {BRIEFING} has a text of its own, as in MLOC"
            yield SpecProblem((*path, "text"), "ignored-value", message, "add a name of your own", "warning")
        if self.name == BRIEFING and len(columns) == 1:
            message = "two_column_briefing template expects at least two columns."
            yield SpecProblem(
                (*path, "columns"), "bad-template", message, "add a column, or a name and text of your own"
            )
        if self.name != BRIEFING and not (self.text or "").strip() and not is_deferred(self.name):
            near = did_you_mean(self.name, [BRIEFING]) or "add the text of the template"
            yield SpecProblem((*path, "name"), "bad-template", f"Unknown graph template '{self.name}'.", near)

    def _message_problems(self, path: tuple[str, ...]) -> Iterator[SpecProblem]:
        if self.messages is None:
            return
        if self.text or "name" in self.model_fields_set:
            other = "text" if self.text else "name"
            message = f"A graph template has either messages or {other}, not both."
            yield SpecProblem((*path, other), "bad-template", message, f"remove {other}, or messages")
        try:
            messages_of(self.messages)
        except ChatFormError as fault:
            yield SpecProblem((*path, "messages"), "bad-messages", f"messages: {fault}", "see docs/spec.md, Chats")


class PromptData(SpecModel):
    """`data` of inference, rag and agent tasks."""

    type: Text | None = None
    # dataset
    url: Text | None = None
    name: Text | None = None
    split: ExactText = "train"
    column: Text = "text"
    shuffle: Flag = False
    seed: Annotated[int, whole(ge=0)] = 42
    streaming: Flag = False
    buffer_size: Count | None = None
    max_samples: Count | None = None
    revision: Text | None = None
    trust_remote_code: Flag = False
    # list
    items: Annotated[list[Annotated[Any, prompt_item(_ITEMS)]] | None, rows(_ITEMS)] = None
    # graph_template
    template: Annotated[GraphTemplate | None, block()] = None
    # Values that are copied to the result of each prompt.
    metadata_columns: Any = None
    metadata_include_all: Flag = False
    metadata: Any = None
    items_metadata: Any = None
    notes: Any = None

    def problems(self, types: tuple[str, ...] = DATA_TYPES) -> Iterator[SpecProblem]:
        """Yield problems of the data; `types` are the values of `type` that the task type knows."""
        yield from self._metadata_problems()
        if self.type == "dataset" and not self.url:
            message = "spec.data.url is required for type == 'dataset'."
            yield SpecProblem(("data", "url"), "missing-value", message, "name a data set, folder or file")
        elif self.type == "list":
            yield from self._list_problems()
        elif self.type == "graph_template":
            yield from self._template_problems()
        elif self.type not in types and not is_deferred(self.type):
            near = did_you_mean(self.type or "", types) or f"use one of: {', '.join(types)}"
            yield SpecProblem(
                ("data", "type"), "unsupported-data-type", f"Unsupported spec.data.type: {self.type!r}", near
            )

    def _list_problems(self) -> Iterator[SpecProblem]:
        if self.items is None:
            yield SpecProblem(("data", "items"), "invalid-type", _ITEMS, "add items, a list of prompts")
        elif not self.items:
            message = "No prompts prepared. Check spec.data configuration."
            yield SpecProblem(("data", "items"), "no-prompts", message, "add at least one prompt")
        for name, rows_ in (("metadata", self.metadata), ("items_metadata", self.items_metadata)):
            if self.items and isinstance(rows_, list) and len(rows_) != len(self.items):
                message = f"{name} has {len(rows_)} entries for {len(self.items)} items"
                yield SpecProblem(("data", name), "length-mismatch", message, "give one entry for each item")

    def _metadata_problems(self) -> Iterator[SpecProblem]:
        """Yield the names that the result itself gives to values of a row."""
        named: list[tuple[tuple[str | int, ...], Any]] = []
        for name in ("metadata", "items_metadata"):
            entries = getattr(self, name)
            for index, entry in enumerate(entries if isinstance(entries, list) else ()):
                named += [((name, index, key), key) for key in entry] if isinstance(entry, dict) else []
        columns = self.metadata_columns
        if isinstance(columns, dict):
            named += [(("metadata_columns", column), alias or column) for column, alias in columns.items()]
        elif isinstance(columns, list):
            named += [(("metadata_columns", index), column) for index, column in enumerate(columns)]
        if columns and self.metadata_include_all:
            message = "metadata_columns is not read: metadata_include_all copies every column under its own name"
            yield SpecProblem(
                ("data", "metadata_columns"), "ignored-value", message, "remove one of the two", "warning"
            )
        for path, key in named:
            if key in _OWN_METADATA:
                message = f"metadata '{key}' is replaced by the {key.replace('_', ' ')} of the row"
                yield SpecProblem(("data", *path), "ignored-value", message, "give it another name", "warning")

    def _template_problems(self) -> Iterator[SpecProblem]:
        if self.template is None:
            yield SpecProblem(
                ("data", "template"), "bad-template", "data.template must be a mapping", "add template: with columns"
            )
        else:
            yield from self.template.problems(("data", "template"))


class JsonlExport(SpecModel):
    """`postprocess.jsonl_export`."""

    path: Text | None = None
    fields: Free = Field(default_factory=dict)
    required_fields: Annotated[list[ItemText], rows()] = Field(default_factory=list)

    def problems(self, path: tuple[str, ...]) -> Iterator[SpecProblem]:
        """Yield problems of the export at `path`."""
        yield from self._field_problems(path)
        wanted = (self.path or "").strip()
        if is_deferred(wanted):
            return
        if scheme_of(wanted) is not None:
            message = "path is a URL, and the export lies below the directory of the task"
            fix = "write a file name, and send the result to the store with output.destination.path"
            yield SpecProblem((*path, "path"), "invalid-path", message, fix)
        elif wanted and posixpath.normpath(wanted).partition("/")[0] == "..":
            message = "path leaves the directory of the task"
            yield SpecProblem((*path, "path"), "invalid-path", message, "write a path without '..'")

    def _field_problems(self, path: tuple[str, ...]) -> Iterator[SpecProblem]:
        for name, rule in self.fields.items():
            if (fault := rule_fault(rule, is_deferred)) is not None:
                near = did_you_mean(rule, SOURCES) if isinstance(rule, str) else None
                yield SpecProblem((*path, "fields", name, *fault), "invalid-type", f"{name} {WANTED}", near)
        for name in unknown_fields(self.required_fields, self.fields):
            if is_deferred(name):
                continue
            message = f"required_fields names '{name}', which the export does not write"
            known = tuple(self.fields or DEFAULT_RULES)
            fix = did_you_mean(name, known) or f"use one of: {', '.join(known)}, or add it to fields"
            position: tuple[str | int, ...] = (*path, "required_fields", self.required_fields.index(name))
            yield SpecProblem(position, "invalid-item", message, fix)


class Postprocess(SpecModel):
    """`postprocess`."""

    jsonl_export: Annotated[JsonlExport | None, block()] = None
