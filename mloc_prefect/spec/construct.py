"""YAML nodes to plain JSON data and the places of all values, in one pass.

The result equals `yaml.safe_load` wherever JSON can carry it. What JSON cannot carry is converted with a warning
(dates, keys that are not text) or refused (non-finite numbers, binary data, sets). Aliases are expanded, so nothing in
the result is shared; the number of values after expansion is bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from yaml.nodes import MappingNode, ScalarNode, SequenceNode

from mloc_prefect.spec.positions import Positions
from mloc_prefect.spec.report import shown
from mloc_prefect.spec.scalars import MERGE, STR, RefusedError, foreign_tag, key_text, scalar_value
from mloc_prefect.spec.syntax import MAX_DEPTH, report_too_deep

if TYPE_CHECKING:
    from yaml.nodes import Node

    from mloc_prefect.spec.positions import PathPart
    from mloc_prefect.spec.report import Report

MAX_VALUES = 100_000

_MAP = "tag:yaml.org,2002:map"
_SEQ = "tag:yaml.org,2002:seq"
_NO_CHILDREN: dict[PathPart, Positions] = {}
_Pairs = list[tuple[Any, Any]]


class _GiveUpError(Exception):
    """The document is refused as a whole; the reason is reported."""


def construct(node: Node, report: Report) -> tuple[Any, Positions] | None:
    """Return the data of `node` and its places, or None when it is refused as a whole.

    Faults of single values are reported and replaced (by null, or by the value without its tag), so that one reading
    of a file finds them all.
    """
    builder = _Builder(report)
    places: dict[PathPart, Positions] = {}
    mark = node.start_mark
    try:
        data = builder.value(node, places, "", mark.line + 1, mark.column + 1)
    except _GiveUpError:
        return None
    return data, places[""]


class _Builder:
    def __init__(self, report: Report) -> None:
        self.report = report
        self.path: list[PathPart] = []
        self.open: list[Node] = []
        self.left = MAX_VALUES

    def value(
        self, node: Node, places: dict[PathPart, Positions], key: PathPart, key_line: int, key_column: int
    ) -> Any:
        """Return the data of `node`; its place goes into `places` under `key`."""
        mark = node.start_mark
        line = mark.line + 1
        column = mark.column + 1
        self.left -= 1
        if type(node) is ScalarNode:
            places[key] = Positions(line, column, key_line, key_column, _NO_CHILDREN)
            if node.tag == STR:
                return node.value
            return self.scalar(node, (line, column))
        children: dict[PathPart, Positions] = {}
        places[key] = Positions(line, column, key_line, key_column, children)
        if self.left < 0 or len(self.path) >= MAX_DEPTH:
            self.give_up(node, (line, column))
        self.open.append(node)
        data: Any = self.mapping(node, children) if type(node) is MappingNode else self.sequence(node, children)
        self.open.pop()
        return data

    def mapping(self, node: MappingNode, children: dict[PathPart, Positions]) -> dict[str, Any]:
        """Return the data of a mapping; keys that it merges in (`<<`) stand before and yield to its own."""
        if node.tag != _MAP:
            self.foreign_tag(node)
        data: dict[str, Any] = {}
        path = self.path
        for key_node, value_node in self.merged(node):
            name = self.key(key_node)
            path.append(name)
            mark = key_node.start_mark
            data[name] = self.value(value_node, children, name, mark.line + 1, mark.column + 1)
            path.pop()
        own: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == MERGE:
                continue
            name = key_node.value if key_node.tag == STR and type(key_node) is ScalarNode else self.key(key_node)
            mark = key_node.start_mark
            line = mark.line + 1
            path.append(name)
            if name in own:
                self.duplicate(name, (line, mark.column + 1), own[name])
            own[name] = line
            data[name] = self.value(value_node, children, name, line, mark.column + 1)
            path.pop()
        return data

    def sequence(self, node: Node, children: dict[PathPart, Positions]) -> list[Any]:
        """Return the data of a list."""
        if node.tag != _SEQ:
            self.foreign_tag(node)
        data = []
        path = self.path
        for index, item in enumerate(node.value):
            path.append(index)
            mark = item.start_mark
            data.append(self.value(item, children, index, mark.line + 1, mark.column + 1))
            path.pop()
        return data

    def merged(self, node: MappingNode) -> _Pairs:
        """Return the pairs that `<<` keys of `node` bring, later ones winning, as PyYAML orders them."""
        pairs: _Pairs = []
        for key_node, value_node in node.value:
            if key_node.tag == MERGE:
                self.open.append(node)
                if type(value_node) is MappingNode:
                    pairs += self.flat(value_node)
                elif type(value_node) is SequenceNode:
                    for item in reversed(value_node.value):
                        pairs += self.flat(item)
                else:
                    self.bad_merge(value_node)
                self.open.pop()
        return pairs

    def flat(self, node: Node) -> _Pairs:
        """Return all pairs of a mapping that is merged in, its own merges included."""
        if type(node) is not MappingNode:
            self.bad_merge(node)
            return []
        if self.left < 0 or len(self.open) > 4 * MAX_DEPTH or node in self.open:
            self.give_up(node, _place(node))
        pairs = self.merged(node) + [pair for pair in node.value if pair[0].tag != MERGE]
        self.left -= len(pairs)
        return pairs

    def key(self, node: Node) -> str:
        """Return the JSON text of a mapping key."""
        place = _place(node)
        if type(node) is not ScalarNode:
            self.report.error(
                "key-not-text",
                "Invalid YAML: found unhashable key: a mapping or list cannot be a key",
                place,
                path=self.path,
                suggestion="quote a text that starts with '[' or '{'",
            )
            return f"<key {place[0]}:{place[1]}>"
        value = self.scalar(node, place, is_key=True)
        if isinstance(value, str):
            return value
        text = key_text(value)
        self.report.warning(
            "non-text-key",
            f"The key {node.value or '(empty)'} is not text: it becomes '{text}'",
            place,
            path=self.path,
            suggestion=f"write '{node.value}' in quotes if that text is meant",
        )
        return text

    def scalar(self, node: ScalarNode, place: tuple[int, int], *, is_key: bool = False) -> Any:
        """Return the value of a scalar that is not plain text; faults are reported."""
        try:
            value, note = scalar_value(node, is_key=is_key)
        except RefusedError as refused:
            found = shown(node.value) if node.value else None
            self.report.error(
                refused.code, refused.message, place, path=self.path, found=found, suggestion=refused.help
            )
            return None if not is_key else str(node.value)
        if note is not None:
            self.report.warning(note.code, note.message, place, path=self.path, suggestion=note.help)
        return value

    def foreign_tag(self, node: Node) -> None:
        """Report a mapping or list with a tag that is not its own; it is read as if it had none."""
        refused = foreign_tag(node.tag, "mapping" if type(node) is MappingNode else "list")
        self.report.error(refused.code, refused.message, _place(node), path=self.path, suggestion=refused.help)

    def duplicate(self, name: str, place: tuple[int, int], first_line: int) -> None:
        """Report a key that stands twice in one mapping."""
        message = f"Duplicate key '{name}' (first on line {first_line})"
        self.report.error("duplicate-key", message, place, path=self.path, suggestion="keep one of the two")

    def bad_merge(self, node: Node) -> None:
        """Report a `<<` whose value is not a mapping."""
        message = "Invalid YAML: '<<' can merge only a mapping or a list of mappings"
        self.report.error("bad-merge", message, _place(node), path=self.path, suggestion="name an anchor of a mapping")

    def give_up(self, node: Node, place: tuple[int, int]) -> None:
        """Report why the document cannot be expanded, and end the pass."""
        if node in self.open:
            message, fix = "This value contains itself through an alias", "remove the alias inside its own anchor"
            self.report.error("recursive-alias", message, place, path=self.path[:4], suggestion=fix)
        elif self.left < 0:
            message = f"The document holds more than {MAX_VALUES} values after aliases are expanded"
            fix = "move large data into a file that data.url names"
            self.report.error("alias-expansion", message, place, path=self.path[:4], suggestion=fix)
        else:
            report_too_deep(self.report, place, tuple(self.path))
        raise _GiveUpError


def _place(node: Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1
