"""Applies `--set path=value` overrides to a document before it is expanded."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mloc_prefect.diagnostics.diagnostic import did_you_mean
from mloc_prefect.diagnostics.positions import Positions, path_text
from mloc_prefect.spec.construct import construct
from mloc_prefect.spec.diagnostic_report import DiagnosticReport, shown
from mloc_prefect.spec.secrets import has_secret
from mloc_prefect.spec.syntax import MAX_DEPTH, compose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.diagnostics.positions import PathPart
    from mloc_prefect.spec.expand import TaskDraft

_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_COMMAND_LINE = (0, 0)


class _BadPathError(Exception):
    """The path does not lead to a value that can be set; the message says why."""


def apply_overrides(
    overrides: Sequence[str], document: dict[str, Any], positions: Positions, report: DiagnosticReport
) -> None:
    """Apply `path=value` texts to `document` and `positions`; overrides that cannot be applied are reported.

    `stages.NAME...` and `nodes.NAME...` address the stage or node of that name, `[n]` an entry of a list. Values are
    YAML (`32`, `true`, `[a, b]`, `{x: 1}`); missing mappings on the path are created.
    """
    for text in overrides:
        raw, equals, value_text = text.partition("=")
        try:
            if not equals or not raw.strip():
                raise _BadPathError("write path=value, e.g. spec.inference.max_tokens=32")
            path = _resolved_path(raw.strip(), document)
            _set_value(document, positions, path, _parsed_value(value_text))
        except _BadPathError as error:
            report.error("bad-override", f"Cannot set '{text}'", _COMMAND_LINE, suggestion=str(error))


def report_shadowed(
    overrides: Sequence[str], drafts: Sequence[TaskDraft], positions: Positions, report: DiagnosticReport
) -> None:
    """Warn about overrides of the base document that stages override again with values of their own."""
    for text in overrides:
        path = _parts_of(text.partition("=")[0].strip())
        base = positions.find(path)
        own = [d for d in drafts if d.origin and d.positions.find(path) is not base]
        if path[:1] != ("spec",) or path[1:2] in {("stages",), ("graph",)} or not own or base.line:
            continue
        if all(type(_value_at(d.effective, path)) is dict for d in own):
            continue  # merged with the value of the stage, not replaced
        names = ", ".join(f"'{d.node}'" for d in own)
        message = f"{path_text(path)} is not overridden in {names}, which set it themselves"
        fix = f"set stages.{own[0].node}.{path_text(path)} as well"
        report.warning("override-shadowed", message, _COMMAND_LINE, path=path, suggestion=fix)


def shown_override(text: str) -> str:
    """Return a `path=value` text for display; a value that is or contains a secret becomes `…`."""
    raw, equals, value_text = text.partition("=")
    try:
        value = _parsed_value(value_text)
    except _BadPathError:
        value = value_text
    for part in reversed(_parts_of(raw.strip())):
        value = {str(part): value}
    return f"{raw}{equals}…" if has_secret(value) else text


def _parts_of(raw: str) -> tuple[PathPart, ...]:
    """Return the parts of `spec.data.items[2]`."""
    return tuple(int(number) if number else name for name, number in _STEP.findall(raw))


def _resolved_path(raw: str, document: dict[str, Any]) -> tuple[PathPart, ...]:
    """Return the path that `raw` describes, with indices instead of the names of stages and nodes."""
    body = raw.removeprefix("spec.").removeprefix("graph.")
    head, dot, rest = body.partition(".")
    if head not in {"stages", "nodes"} or not dot:
        return _parts_of(raw)
    base: tuple[PathPart, ...] = ("spec", "stages") if head == "stages" else ("spec", "graph", "nodes")
    items = _value_at(document, base)
    names = [_item_name(item, n, head) for n, item in enumerate(items if isinstance(items, list) else [])]
    # Names may contain dots, so the longest matching name is used.
    for index in sorted(range(len(names)), key=lambda n: -len(names[n])):
        if rest == names[index] or rest.startswith((f"{names[index]}.", f"{names[index]}[")):
            return (*base, index, *_parts_of(rest[len(names[index]) :]))
    if not names:
        raise _BadPathError(f"the spec has no {head}")
    wanted = rest.partition(".")[0]
    raise _BadPathError(did_you_mean(wanted, names) or f"the {head} are: {', '.join(names[:8])}")


def _item_name(item: Any, index: int, head: str) -> str:
    own = (item.get("name") or item.get("id")) if isinstance(item, dict) else None
    return str(own).strip() if own else f"{'stage' if head == 'stages' else 'node'}-{index + 1}"


def _parsed_value(text: str) -> Any:
    """Return the YAML value of `text`; blank text is the empty string.

    Raises:
        _BadPathError: The text is not a YAML value.
    """
    if not text.strip():
        return ""
    inner = DiagnosticReport("")
    node = compose(text, inner)
    built = construct(node, inner) if node is not None else None
    faults = [d for d in inner.diagnostics() if d.severity == "error"]
    if faults or built is None:
        message = faults[0].message if faults else "no value"
        raise _BadPathError(f"the value cannot be read ({message}); quote text with special characters")
    return built[0]


def _set_value(document: dict[str, Any], positions: Positions, path: tuple[PathPart, ...], value: Any) -> None:
    if len(path) > MAX_DEPTH:
        raise _BadPathError(f"the path has more than {MAX_DEPTH} parts")
    if not path or not isinstance(path[0], str):
        raise _BadPathError("write path=value, e.g. spec.inference.max_tokens=32")
    current: Any = document
    for depth, part in enumerate(path[:-1]):
        if isinstance(current, dict) and isinstance(part, str) and current.get(part) is None:
            current[part] = {}
            _mark_overridden(positions, path[: depth + 1])
        current = _child(current, part, path[:depth])
    last = path[-1]
    if not (isinstance(current, dict) and isinstance(last, str)):
        _child(current, last, path[:-1])
    current[last] = value
    _mark_overridden(positions, path, value)


def _child(current: Any, part: PathPart, path: tuple[PathPart, ...]) -> Any:
    if isinstance(current, dict) and isinstance(part, str):
        return current.get(part)
    if isinstance(current, list) and isinstance(part, int):
        if part < len(current):
            return current[part]
        raise _BadPathError(f"{path_text(path)} has {len(current)} entries, counted from 0")
    kind = "a list: use [n]" if isinstance(current, list) else f"{shown(current)}, which has no fields"
    raise _BadPathError(f"{path_text(path) or 'the document'} is {kind}")


def _mark_overridden(positions: Positions, path: tuple[PathPart, ...], value: Any = None) -> None:
    """Record that the value at `path` came from the command line; its parent keeps its position."""
    parent = positions.find(path[:-1])
    position = _command_line_positions(value)
    if not parent.children:
        parent.children = {path[-1]: position}  # never change the empty mapping that all scalars share
    else:
        parent.children[path[-1]] = position


def _command_line_positions(value: Any) -> Positions:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return Positions(0, 0, 0, 0, {key: _command_line_positions(item) for key, item in pairs})


def _value_at(value: Any, path: Sequence[PathPart]) -> Any:
    for part in path:
        try:
            value = value[part]
        except (LookupError, TypeError):
            return None
    return value
