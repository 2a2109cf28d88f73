"""Prompts of a task from `spec.data`: list, dataset, graph_template [protocol 4.2, 4.7]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mloc_prefect.errors import ExecutionError
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.datasets_source import load_table
from mloc_prefect.executors.fields import Fields
from mloc_prefect.executors.own_rows import own_rows
from mloc_prefect.plan.graph_template import render

if TYPE_CHECKING:
    from mloc_prefect.executors.datasets_source import Table
    from mloc_prefect.executors.places import Places
    from mloc_prefect.executors.tables import Row


@dataclass(frozen=True, slots=True)
class Prompt:
    """One input row.

    Attributes:
        text: The prompt as the data gave it, without a system prompt.
        metadata: What the result shows beside the output.
        error: Why the row cannot be processed, or None.
    """

    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


class Prompts(list[Prompt]):
    """The input rows of one task, or of one shard of it.

    Attributes:
        first: Number of the first one in the whole task; 0 unless this is a shard.
    """

    first: int = 0


def load_prompts(spec: Mapping[str, Any], upstream: Mapping[str, Any], places: Places) -> Prompts:
    """Return the prompts of a task, in order; those of its part when `spec.shard` names one [protocol 2.7].

    Args:
        spec: The resolved `spec` mapping; `spec.data` says where the prompts come from.
        upstream: Results of earlier stages by name, for `graph_template`.
        places: Mirrors and local paths.

    Raises:
        UserError: Nothing usable is there; the texts of protocol 4.2 where it fixes them.
    """
    if not spec.get("data"):
        raise UserError("spec.data is required.")
    data = Fields(spec, "spec").child("data")
    kind = data.get("type")
    if kind == "list":
        prompts = _from_list(data)
    elif kind == "dataset":
        prompts = _from_table(load_table(data, places), data)
    elif kind == "graph_template":
        prompts = [_from_template(data, upstream or spec.get("_upstreamResults") or {})]
    else:
        raise UserError(f"Unsupported spec.data.type: {kind!r}")
    if not prompts:
        raise UserError("No prompts prepared. Check spec.data configuration.")
    rows, first = own_rows(prompts, spec)
    own = Prompts(rows)
    own.first = first
    return own


def _from_list(data: Fields) -> list[Prompt]:
    items = data.get("items")
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise UserError("spec.data.items must be a list of strings for type == 'list'.")
    extra = data.get("metadata", "items_metadata")
    if extra is None:
        return [Prompt(item) for item in items]
    if not isinstance(extra, list) or len(extra) != len(items):
        found = f"{len(extra)} entries" if isinstance(extra, list) else type(extra).__name__
        raise UserError(f"spec.data.metadata must be a list as long as spec.data.items ({len(items)}), found {found}")
    return [Prompt(item, _as_metadata(more)) for item, more in zip(items, extra, strict=True)]


def _as_metadata(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    return {str(k): v for k, v in value.items()} if isinstance(value, Mapping) else {"value": value}


def _from_table(table: Table, data: Fields) -> list[Prompt]:
    if not table.rows:
        return []
    column = data.text("column") or "text"
    aliases = _metadata_columns(table, data)
    for name in (column, *aliases):
        if name not in table.columns:
            raise UserError(f"Column '{name}' not found in dataset. Available: {list(table.columns)}")
    return [_row_prompt(row, column, aliases) for row in table.rows]


def _row_prompt(row: Row, column: str, aliases: Mapping[str, str]) -> Prompt:
    metadata = {alias: row.get(name) for name, alias in aliases.items()}
    value = row.get(column)
    if value is None:
        return Prompt("", metadata, f"column '{column}' has no value in this row")
    return Prompt(str(value), metadata)


def _metadata_columns(table: Table, data: Fields) -> dict[str, str]:
    """Return column -> name in the result of the columns that travel with each row [protocol 4.2, later part]."""
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


def _from_template(data: Fields, upstream: Mapping[str, Any]) -> Prompt:
    template = data.get("template")
    if not isinstance(template, Mapping):
        raise UserError("spec.data.template must be a mapping for type == 'graph_template'.")
    try:
        return Prompt(render(template, upstream))
    except ExecutionError as error:
        raise UserError(error.message) from None
