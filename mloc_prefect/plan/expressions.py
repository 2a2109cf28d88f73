"""The grammar of `${...}` placeholders and of `graph_template` expressions. [protocol 2.6]."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_prefect.diagnostics.positions import PathPart

PLACEHOLDER = re.compile(r"\$\{([^}]+)\}")
"""One placeholder; group 1 is the expression, white space at its ends is trimmed."""

_TOKEN = re.compile(r"([^\[\]]*)((?:\[[0-9]{1,9}\])*)")
_INDEX = re.compile(r"\[([0-9]+)\]")
_SHOWN_KEYS = 8


def complete(text: str) -> int:
    """Return where the last `}` of `text` ends: only before it can `PLACEHOLDER` match.

    Searching further would take time with the square of the number of `${` that are never closed.
    """
    return text.rfind("}") + 1


def is_doubled(text: str, start: int) -> bool:
    """Return whether the placeholder at `start` has a dollar sign before it: `$${x.y}` is the text `${x.y}`.

    That holds only where `${x.y}` would be an error. A reference stays one, since `$${shop.result.price}` is a price.
    """
    return start > 0 and text[start - 1] == "$"


class ExpressionError(ValueError):
    """The text after the root is not a path; the message names the wrong part."""


class MissingValueError(LookupError):
    """A path leads nowhere; the message names the step that failed and what is there instead."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression.

    Attributes:
        text: The expression as written, trimmed.
        root: The first token: everything before the first dot.
        path: Keys (text) and bracket indices (int) below the root; a key of digits also indexes a list.
    """

    text: str
    root: str
    path: tuple[PathPart, ...]

    @property
    def is_task_id(self) -> bool:
        """Whether it reads the id of the task, which is known before the task has run."""
        return self.path == ("task_id",)


def root_of(text: str) -> str:
    """Return the first token of the expression `text`; brackets on it are part of the name."""
    return text.partition(".")[0]


def parse(text: str) -> Expression:
    """Parse an expression: `root`, then tokens after dots, each a key and any number of `[n]`; empty ones are skipped.

    Raises:
        ExpressionError: A token has something else in its brackets than a number from 0, or text after them.
    """
    trimmed = text.strip()
    root, _, rest = trimmed.partition(".")
    return Expression(trimmed, root, tuple(_parts(rest)))


def _parts(rest: str) -> Iterator[PathPart]:
    for token in rest.split("."):
        match = _TOKEN.fullmatch(token)
        if match is None:
            raise ExpressionError(f"'{token}' is not a key with indices like items[0]")
        if match[1]:
            yield match[1]
        for digits in _INDEX.findall(match[2]):
            yield int(digits)


def lookup(content: Any, path: tuple[PathPart, ...]) -> Any:
    """Return the value at `path` in `content`: keys work on mappings, indices on lists.

    Raises:
        MissingValueError: There is no such key or index.
    """
    here = content
    for depth, part in enumerate(path):
        if isinstance(here, Mapping) and isinstance(part, str):
            if part not in here:
                raise MissingValueError(_no_key(part, path[:depth], here))
            here = here[part]
            continue
        index = _index(part)
        if not isinstance(here, list) or index is None:
            raise MissingValueError(f"{_place(path[:depth])} is {_kind(here)}, so it has no {_part_text(part)}")
        if index >= len(here):
            raise MissingValueError(f"{_place(path[:depth])} has {len(here)} items, so there is no item {index}")
        here = here[index]
    return here


def failure_at(content: Any, path: tuple[PathPart, ...]) -> str | None:
    """Return the sentence that the row at `path` failed, when the last key is the `output` of a row that did."""
    if not path or path[-1] != "output":
        return None
    try:
        row = lookup(content, path[:-1])
    except MissingValueError:
        return None
    error = row.get("error") if isinstance(row, Mapping) else None
    return f"the row of {_place(path[:-1])} failed: {error}" if error else None


def _index(part: PathPart) -> int | None:
    if isinstance(part, int):
        return part
    return int(part) if part.isascii() and part.isdigit() and len(part) < 10 else None


def _no_key(key: str, above: tuple[PathPart, ...], here: Mapping[Any, Any]) -> str:
    names = [str(k) for k in here]
    shown = ", ".join(names[:_SHOWN_KEYS]) + (", ..." if len(names) > _SHOWN_KEYS else "")
    return f"{_place(above)} has no key '{key}' (it has: {shown or 'nothing'})"


def _place(path: tuple[PathPart, ...]) -> str:
    from mloc_prefect.diagnostics.positions import path_text

    return f"'{path_text(path)}'" if path else "its result file"


def _part_text(part: PathPart) -> str:
    return f"item {part}" if isinstance(part, int) else f"key '{part}'"


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list) else f"a {type(value).__name__}"
