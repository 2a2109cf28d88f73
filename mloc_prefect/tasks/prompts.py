"""`spec.data` of task types that answer prompts: dataset, list, graph_template [protocol 4.2, 4.7]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from mloc_prefect.spec.diagnostics import did_you_mean
from mloc_prefect.tasks.base import Problem, SpecModel
from mloc_prefect.tasks.fields import (
    Count,
    ExactText,
    Flag,
    Free,
    ItemText,
    Text,
    Texts,
    Textual,
    block,
    is_deferred,
    item,
    rows,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA_TYPES = ("dataset", "list", "graph_template")
BRIEFING = "two_column_briefing"
"""The only graph template with a name of its own."""

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
        """Return the label as the template shows it; `index` counts from 0."""
        return (self.label or "").strip() or f"Column {index + 1}"


class GraphTemplate(SpecModel):
    """`data.template`."""

    name: Text = BRIEFING
    text: Text | None = None
    columns: Annotated[
        list[Annotated[TemplateColumn, item("Each column definition must be a mapping.")]] | None,
        rows("graph_template.template.columns must be a non-empty list."),
    ] = None
    options: Annotated[TemplateOptions, block()] = TemplateOptions()
    append_system_prompt: Flag = False

    def problems(self, path: tuple[str, ...]) -> Iterator[Problem]:
        """Yield what is wrong with the template that stands at `path`."""
        columns = self.columns or []
        if not columns:
            message = "graph_template.template.columns must be a non-empty list."
            yield Problem((*path, "columns"), "bad-template", message, "add columns with a label and an expr")
        for index, column in enumerate(columns):
            if not column.expr and not (column.node and column.path):
                message = f"Column '{column.label_or(index)}' is missing an expr/node+path definition."
                fix = "add expr: <stage>.result.items[0].output"
                yield Problem((*path, "columns", index), "bad-template", message, fix)
        if self.name == BRIEFING and len(columns) == 1:
            message = "two_column_briefing template expects at least two columns."
            yield Problem((*path, "columns"), "bad-template", message, "add a column, or a name and text of your own")
        if self.name != BRIEFING and not (self.text or "").strip() and not is_deferred(self.name):
            near = did_you_mean(self.name, [BRIEFING]) or "add the text of the template"
            yield Problem((*path, "name"), "bad-template", f"Unknown graph template '{self.name}'.", near)


class PromptData(SpecModel):
    """`data` of inference, rag and agent tasks."""

    type: Text | None = None
    # dataset
    url: Text | None = None
    name: Text | None = None
    split: ExactText = "train"
    column: Text = "text"
    shuffle: Flag = False
    seed: Annotated[int, whole()] = 42
    streaming: Flag = False
    buffer_size: Count | None = None
    max_samples: Count | None = None
    revision: Text | None = None
    trust_remote_code: Flag = False
    # list
    items: Annotated[list[Annotated[str, Textual(exact=True, message=_ITEMS, item=True)]] | None, rows(_ITEMS)] = None
    # graph_template
    template: Annotated[GraphTemplate | None, block()] = None
    # Values that travel beside each prompt into the result.
    metadata_columns: Any = None
    metadata_include_all: Flag = False
    metadata: Any = None
    items_metadata: Any = None
    notes: Any = None

    def problems(self, types: tuple[str, ...] = DATA_TYPES) -> Iterator[Problem]:
        """Yield what is wrong with the data; `types` are those that the task type knows."""
        if self.type == "dataset" and not self.url:
            message = "spec.data.url is required for type == 'dataset'."
            yield Problem(("data", "url"), "missing-value", message, "name a data set, folder or file")
        elif self.type == "list":
            yield from self._list_problems()
        elif self.type == "graph_template":
            yield from self._template_problems()
        elif self.type not in types and not is_deferred(self.type):
            near = did_you_mean(self.type or "", types) or f"use one of: {', '.join(types)}"
            yield Problem(("data", "type"), "unsupported-data-type", f"Unsupported spec.data.type: {self.type!r}", near)

    def _list_problems(self) -> Iterator[Problem]:
        if self.items is None:
            yield Problem(("data", "items"), "invalid-type", _ITEMS, "add items, a list of prompts")
        elif not self.items:
            message = "No prompts prepared. Check spec.data configuration."
            yield Problem(("data", "items"), "no-prompts", message, "add at least one prompt")
        for name, rows_ in (("metadata", self.metadata), ("items_metadata", self.items_metadata)):
            if self.items and isinstance(rows_, list) and len(rows_) != len(self.items):
                message = f"{name} has {len(rows_)} entries for {len(self.items)} items"
                yield Problem(("data", name), "length-mismatch", message, "give one entry for each item")

    def _template_problems(self) -> Iterator[Problem]:
        if self.template is None:
            yield Problem(
                ("data", "template"), "bad-template", "data.template must be a mapping", "add template: with columns"
            )
        else:
            yield from self.template.problems(("data", "template"))


class JsonlExport(SpecModel):
    """`postprocess.jsonl_export`."""

    path: Text | None = None
    fields: Free = Field(default_factory=dict)
    required_fields: Annotated[list[ItemText], rows()] = Field(default_factory=list)


class Postprocess(SpecModel):
    """`postprocess`."""

    jsonl_export: Annotated[JsonlExport | None, block()] = None
