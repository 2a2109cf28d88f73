"""`data.type: graph_template`: one prompt made from the results of earlier stages. [protocol 4.7]."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mloc_prefect.errors import ExecutionError
from mloc_prefect.plan.expressions import ExpressionError, MissingValueError, lookup, parse

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_TEMPLATE = "two_column_briefing"


class Column(NamedTuple):
    """One filled column."""

    label: str
    value: str


def render(template: Mapping[str, Any], upstream: Mapping[str, Any]) -> str:
    """Return the prompt.

    Args:
        template: `data.template` of the spec.
        upstream: Result of each earlier stage by name, each with a `result` level.

    Raises:
        ExecutionError: Not retryable: the template is malformed, or a column has no value.
    """
    if not upstream:
        raise _error("No upstream results available for graph template prompts.")
    columns = _columns(template, upstream)
    name = str(template.get("name") or DEFAULT_TEMPLATE)
    registered = _TEMPLATES.get(name)
    if registered is not None:
        return registered(columns, _mapping(template.get("options")))
    text = template.get("text")
    if not isinstance(text, str) or not text.strip():
        raise _error(f"Unknown graph template '{name}'.")
    return _fill(text, columns)


def expression_of(column: Mapping[str, Any]) -> str | None:
    """Return the expression of a column: `expr`, or `<node>.<path>`; None when neither is complete."""
    if column.get("expr"):
        return str(column["expr"]).strip()
    if column.get("node") and column.get("path"):
        return f"{str(column['node']).strip()}.{str(column['path']).strip()}"
    return None


def _columns(template: Mapping[str, Any], upstream: Mapping[str, Any]) -> list[Column]:
    definitions = template.get("columns")
    if not isinstance(definitions, list) or not definitions:
        raise _error("graph_template.template.columns must be a non-empty list.")
    return [_column(n, definition, upstream) for n, definition in enumerate(definitions, 1)]


def _column(number: int, definition: Any, upstream: Mapping[str, Any]) -> Column:
    if not isinstance(definition, Mapping):
        raise _error("Each column definition must be a mapping.")
    label = str(definition.get("label") or "").strip() or f"Column {number}"
    expression = expression_of(definition)
    if expression is None:
        raise _error(f"Column '{label}' is missing an expr/node+path definition.")
    value, why = _value(expression, upstream)
    if value is None:
        if "default" not in definition:
            raise _error(f"Column '{label}' expression '{expression}' resolved to null.", hint=why)
        value = definition["default"]
    return Column(label, _text(value))


def _value(expression: str, upstream: Mapping[str, Any]) -> tuple[Any, str | None]:
    """Return the value, and why there is none."""
    try:
        parsed = parse(expression)
    except ExpressionError as error:
        return None, str(error)
    if parsed.root not in upstream:
        return None, f"there is no result of '{parsed.root}'; there are: {', '.join(sorted(upstream))}"
    try:
        return lookup(upstream[parsed.root], parsed.path), None
    except MissingValueError as error:
        return None, f"in the result of '{parsed.root}', {error}"


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, int, float)):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def _two_column_briefing(columns: Sequence[Column], options: Mapping[str, Any]) -> str:
    if len(columns) < 2:
        raise _error("two_column_briefing template expects at least two columns.")
    lines = _lines(options.get("intro")) or _default_intro(options)
    lines += [f"\u2022 {column.label}: {_indented(column.value)}" for column in columns]
    lines += _lines(options.get("closing")) or _default_closing(columns)
    return "\n".join(lines)


def _default_intro(options: Mapping[str, Any]) -> list[str]:
    role = str(options.get("role") or "energy strategist")
    article = "an" if role[:1].lower() in set("aeiou") else "a"
    return [
        f"Take the part of {article} {role} and weigh the factor analyses below against each other.",
        "Write a brief that compares them in a few sentences.",
    ]


def _default_closing(columns: Sequence[Column]) -> list[str]:
    first, second = columns[0].label.lower(), columns[1].label.lower()
    return [
        "Give the summary in the style of two columns, one for each side.",
        f"End with recommendations that balance {first} against {second}.",
    ]


def _lines(value: Any) -> list[str]:
    if not value:
        return []
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _indented(value: str) -> str:
    return value.replace("\r\n", "\n").strip().replace("\n", "\n  ")


def _fill(text: str, columns: Sequence[Column]) -> str:
    values: dict[str, str] = {}
    for number, column in enumerate(columns):
        values[f"col{number}_label"] = column.label
        values[f"col{number}_value"] = column.value
    try:
        return _KeepUnknown().vformat(text, (), values)
    except (ValueError, AttributeError, IndexError, TypeError) as error:
        raise _error(
            f"graph_template.template.text cannot be filled: {error}", hint="write {{ and }} for literal braces"
        ) from None


class _KeepUnknown(string.Formatter):
    """Fill known names, leave other simple names in their braces, refuse attributes and indices."""

    def get_field(self, field_name: str, _args: Any, kwargs: Any) -> tuple[Any, str]:
        if any(mark in field_name for mark in ".["):
            raise ValueError(f"'{{{field_name}}}' is not a plain name")
        return kwargs.get(field_name, "{" + field_name + "}"), field_name


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _error(message: str, hint: str | None = None) -> ExecutionError:
    return ExecutionError(message, retryable=False, hint=hint)


_TEMPLATES: dict[str, Callable[[Sequence[Column], Mapping[str, Any]], str]] = {DEFAULT_TEMPLATE: _two_column_briefing}
