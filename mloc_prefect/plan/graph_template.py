"""`data.type: graph_template`: one prompt made from the results of earlier stages. [protocol 4.7]."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mloc_prefect.errors import ExecutionError
from mloc_prefect.plan.expressions import ExpressionError, MissingValueError, failure_at, lookup, parse
from mloc_prefect.plan.resources import mapping_of
from mloc_prefect.tasks.chat_messages import looks_like_messages

if TYPE_CHECKING:
    from collections.abc import Callable

_WHOLE = re.compile(r"\s*\{col([0-9]{1,4})_value\}\s*")
DEFAULT_TEMPLATE = "two_column_briefing"


class TemplateValue(NamedTuple):
    """One filled column: its value as text, and as it is."""

    label: str
    value: str
    raw: Any


def filled_prompt(template: Mapping[str, Any], upstream: Mapping[str, Any]) -> str | list[Any]:
    """Return the prompt: text, or messages.

    It is messages where the template has `messages`, whose texts are filled, and where its `text` is one value alone
    that is messages: such a value stays what it is, as a reference that is the whole text does.

    Args:
        template: `data.template` of the spec.
        upstream: Result of each earlier stage by name, each with a `result` level.

    Raises:
        ExecutionError: Not retryable: the template is malformed, or a column has no value.
    """
    if not upstream:
        raise _error("No upstream results available for graph template prompts.")
    columns = _columns(template, upstream)
    messages = template.get("messages")
    if messages is not None:
        if not isinstance(messages, list):
            raise _error("graph_template.template.messages must be a list of messages.")
        return [_filled(message, columns) for message in messages]
    whole = _WHOLE.fullmatch(str(template.get("text") or ""))
    if whole and int(whole[1]) < len(columns) and template.get("name") not in _TEMPLATES:
        raw = columns[int(whole[1])].raw
        if looks_like_messages(raw):
            return list(raw)
    return _text_of(template, columns)


def _text_of(template: Mapping[str, Any], columns: Sequence[TemplateValue]) -> str:
    name = str(template.get("name") or DEFAULT_TEMPLATE)
    registered = _TEMPLATES.get(name)
    if registered is not None:
        return registered(columns, mapping_of(template.get("options")))
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


def _columns(template: Mapping[str, Any], upstream: Mapping[str, Any]) -> list[TemplateValue]:
    definitions = template.get("columns")
    if not isinstance(definitions, list) or not definitions:
        raise _error("graph_template.template.columns must be a non-empty list.")
    return [_column(n, definition, upstream) for n, definition in enumerate(definitions, 1)]


def _column(number: int, definition: Any, upstream: Mapping[str, Any]) -> TemplateValue:
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
    return TemplateValue(label, _text(value), value)


def _value(expression: str, upstream: Mapping[str, Any]) -> tuple[Any, str | None]:
    """Return the value, or None and the reason."""
    try:
        parsed = parse(expression)
    except ExpressionError as error:
        return None, str(error)
    if parsed.root not in upstream:
        return None, f"there is no result of '{parsed.root}'; there are: {', '.join(sorted(upstream))}"
    try:
        value = lookup(upstream[parsed.root], parsed.path)
        failure = failure_at(upstream[parsed.root], parsed.path) if value == "" else None
        return (None if failure else value), failure
    except MissingValueError as error:
        return None, f"in the result of '{parsed.root}', {error}"


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, int, float)):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def _two_column_briefing(columns: Sequence[TemplateValue], options: Mapping[str, Any]) -> str:
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


def _default_closing(columns: Sequence[TemplateValue]) -> list[str]:
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


def _filled(value: Any, columns: Sequence[TemplateValue]) -> Any:
    """Return a message with every text in it filled."""
    if isinstance(value, str):
        return _fill(value, columns)
    if isinstance(value, Mapping):
        return {name: _filled(below, columns) for name, below in value.items()}
    return [_filled(below, columns) for below in value] if isinstance(value, list) else value


def _fill(text: str, columns: Sequence[TemplateValue]) -> str:
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
    """Fills known names, leaves other simple names in their braces, and refuses attributes and indices."""

    def get_field(self, field_name: str, _args: Any, kwargs: Any) -> tuple[Any, str]:
        if any(mark in field_name for mark in ".["):
            raise ValueError(f"'{{{field_name}}}' is not a plain name")
        return kwargs.get(field_name, "{" + field_name + "}"), field_name


def _error(message: str, hint: str | None = None) -> ExecutionError:
    return ExecutionError(message, retryable=False, hint=hint)


_TEMPLATES: dict[str, Callable[[Sequence[TemplateValue], Mapping[str, Any]], str]] = {
    DEFAULT_TEMPLATE: _two_column_briefing
}
