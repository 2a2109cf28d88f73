"""`--set path=value`: values laid over the document before it is expanded."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mloc_prefect.spec.construct import construct
from mloc_prefect.spec.diagnostics import did_you_mean
from mloc_prefect.spec.positions import Positions, path_text
from mloc_prefect.spec.report import Report, shown
from mloc_prefect.spec.secrets import has_secret
from mloc_prefect.spec.syntax import MAX_DEPTH, compose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.spec.expand import Draft
    from mloc_prefect.spec.positions import PathPart

_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_NOWHERE = (0, 0)


class _BadPathError(Exception):
    """The path leads nowhere; the text says why."""


def apply_overrides(overrides: Sequence[str], document: dict[str, Any], places: Positions, report: Report) -> None:
    """Lay `path=value` texts over `document`, changing it and `places`; what cannot be applied is reported.

    `stages.NAME...` and `nodes.NAME...` reach into the stage or node of that name; `[n]` into a list. Values are YAML
    (`32`, `true`, `[a, b]`, `{x: 1}`); mappings on the way are made when they are missing.
    """
    for text in overrides:
        raw, equals, value_text = text.partition("=")
        try:
            if not equals or not raw.strip():
                raise _BadPathError("write path=value, e.g. spec.inference.max_tokens=32")
            path = _path(raw.strip(), document)
            _put(document, places, path, _parsed(value_text))
        except _BadPathError as error:
            report.error("bad-override", f"Cannot set '{text}'", _NOWHERE, suggestion=str(error))


def report_shadowed(overrides: Sequence[str], drafts: Sequence[Draft], places: Positions, report: Report) -> None:
    """Warn of an override of the base that stages replace by a value of their own."""
    for text in overrides:
        path = _steps(text.partition("=")[0].strip())
        mine = places.find(path)
        own = [d for d in drafts if d.origin and d.positions.find(path) is not mine]
        if path[:1] != ("spec",) or path[1:2] in {("stages",), ("graph",)} or not own or mine.line:
            continue
        if all(type(_at(d.effective, path)) is dict for d in own):
            continue  # merged with the value of the stage, not replaced
        names = ", ".join(f"'{d.node}'" for d in own)
        message = f"{path_text(path)} has a value of its own in {names}, which stays"
        fix = f"set stages.{own[0].node}.{path_text(path)} as well"
        report.warning("override-shadowed", message, _NOWHERE, path=path, suggestion=fix)


def shown_override(text: str) -> str:
    """Return a `path=value` text for people: as it is, or with `…` for a value that is a secret or holds one."""
    raw, equals, value_text = text.partition("=")
    try:
        value = _parsed(value_text)
    except _BadPathError:
        value = value_text
    for part in reversed(_steps(raw.strip())):
        value = {str(part): value}
    return f"{raw}{equals}…" if has_secret(value) else text


def _steps(raw: str) -> tuple[PathPart, ...]:
    """Return the parts of `spec.data.items[2]`."""
    return tuple(int(number) if number else name for name, number in _STEP.findall(raw))


def _path(raw: str, document: dict[str, Any]) -> tuple[PathPart, ...]:
    """Return the path that `raw` means; names of stages and nodes become indices."""
    body = raw.removeprefix("spec.").removeprefix("graph.")
    head, dot, rest = body.partition(".")
    if head not in {"stages", "nodes"} or not dot:
        return _steps(raw)
    base: tuple[PathPart, ...] = ("spec", "stages") if head == "stages" else ("spec", "graph", "nodes")
    items = _at(document, base)
    names = [_name(item, n, head) for n, item in enumerate(items if isinstance(items, list) else [])]
    # A name may hold dots, so the longest one that fits is taken.
    for index in sorted(range(len(names)), key=lambda n: -len(names[n])):
        if rest == names[index] or rest.startswith((f"{names[index]}.", f"{names[index]}[")):
            return (*base, index, *_steps(rest[len(names[index]) :]))
    if not names:
        raise _BadPathError(f"the spec has no {head}")
    wanted = rest.partition(".")[0]
    raise _BadPathError(did_you_mean(wanted, names) or f"the {head} are: {', '.join(names[:8])}")


def _name(item: Any, index: int, head: str) -> str:
    own = (item.get("name") or item.get("id")) if isinstance(item, dict) else None
    return str(own).strip() if own else f"{'stage' if head == 'stages' else 'node'}-{index + 1}"


def _parsed(text: str) -> Any:
    """Return the YAML value of `text`; an empty one is the empty text.

    Raises:
        _BadPathError: It is no YAML value.
    """
    if not text.strip():
        return ""
    inner = Report("")
    node = compose(text, inner)
    built = construct(node, inner) if node is not None else None
    faults = [d for d in inner.diagnostics() if d.severity == "error"]
    if faults or built is None:
        message = faults[0].message.removeprefix("Invalid YAML: ") if faults else "no value"
        raise _BadPathError(f"the value is no YAML ({message}); quote a text with special characters")
    return built[0]


def _put(document: dict[str, Any], places: Positions, path: tuple[PathPart, ...], value: Any) -> None:
    if len(path) > MAX_DEPTH:
        raise _BadPathError(f"the path has more than {MAX_DEPTH} parts")
    if not path or not isinstance(path[0], str):
        raise _BadPathError("write path=value, e.g. spec.inference.max_tokens=32")
    here: Any = document
    for depth, part in enumerate(path[:-1]):
        if isinstance(here, dict) and isinstance(part, str) and here.get(part) is None:
            here[part] = {}
            _mark(places, path[: depth + 1])
        here = _step(here, part, path[:depth])
    last = path[-1]
    if isinstance(here, dict) and isinstance(last, str):
        here[last] = value
    else:
        _step(here, last, path[:-1])
        here[last] = value
    _mark(places, path, value)


def _step(here: Any, part: PathPart, path: tuple[PathPart, ...]) -> Any:
    if isinstance(here, dict) and isinstance(part, str):
        return here.get(part)
    if isinstance(here, list) and isinstance(part, int):
        if part < len(here):
            return here[part]
        raise _BadPathError(f"{path_text(path)} has {len(here)} entries, counted from 0")
    kind = "a list: use [n]" if isinstance(here, list) else f"{shown(here)}, which has no fields"
    raise _BadPathError(f"{path_text(path) or 'the document'} is {kind}")


def _mark(places: Positions, path: tuple[PathPart, ...], value: Any = None) -> None:
    """Note that the value at `path` came from the command line; its parent stays where it was written."""
    parent = places.find(path[:-1])
    spot = _nowhere(value)
    if not parent.children:
        parent.children = {path[-1]: spot}  # never the shared empty mapping of scalars
    else:
        parent.children[path[-1]] = spot


def _nowhere(value: Any) -> Positions:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return Positions(0, 0, 0, 0, {key: _nowhere(item) for key, item in pairs})


def _at(value: Any, path: Sequence[PathPart]) -> Any:
    for part in path:
        try:
            value = value[part]
        except (LookupError, TypeError):
            return None
    return value
