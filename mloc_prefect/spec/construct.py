"""Builds plain JSON data and the positions of all values from YAML nodes, in one pass.

The result equals `yaml.safe_load` wherever JSON can express it. What JSON cannot express is converted with a warning
(dates, keys that are not text) or refused (non-finite numbers, binary data, sets). Aliases are expanded, so the result
shares no objects; the number of values after expansion is limited.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from yaml.nodes import MappingNode, ScalarNode, SequenceNode

from mloc_prefect.diagnostics.positions import Positions
from mloc_prefect.spec.diagnostic_report import shown
from mloc_prefect.spec.scalars import MERGE, STR, RefusedError, foreign_tag, key_text, scalar_value
from mloc_prefect.spec.syntax import MAX_DEPTH, report_too_deep

if TYPE_CHECKING:
    from yaml.nodes import Node

    from mloc_prefect.diagnostics.positions import PathPart
    from mloc_prefect.spec.diagnostic_report import DiagnosticReport

MAX_VALUES = 100_000

_MAP = "tag:yaml.org,2002:map"
_SEQ = "tag:yaml.org,2002:seq"
_NO_CHILDREN: dict[PathPart, Positions] = {}
_Pairs = list[tuple[Any, Any]]


class _DocumentRefusedError(Exception):
    """The document is refused as a whole; the reason has been reported."""


def construct(node: Node, report: DiagnosticReport) -> tuple[Any, Positions] | None:
    """Return the data of `node` and its positions, or None when the document is refused as a whole.

    Errors in single values are reported and the value is replaced (by null, or by the value without its tag), so that
    one pass finds all errors of a file.
    """
    builder = _Builder(report)
    positions: dict[PathPart, Positions] = {}
    mark = node.start_mark
    try:
        data = builder.value(node, positions, "", mark.line + 1, mark.column + 1)
    except _DocumentRefusedError:
        return None
    return data, positions[""]


class _Builder:
    def __init__(self, report: DiagnosticReport) -> None:
        self.report = report
        self.path: list[PathPart] = []
        self.open: list[Node] = []
        self.left = MAX_VALUES

    def value(
        self, node: Node, positions: dict[PathPart, Positions], key: PathPart, key_line: int, key_column: int
    ) -> Any:
        """Return the data of `node`; store its position in `positions` under `key`."""
        mark = node.start_mark
        line = mark.line + 1
        column = mark.column + 1
        self.left -= 1
        if type(node) is ScalarNode:
            positions[key] = Positions(line, column, key_line, key_column, _NO_CHILDREN)
            if node.tag == STR:
                return node.value
            return self.scalar(node, (line, column))
        children: dict[PathPart, Positions] = {}
        positions[key] = Positions(line, column, key_line, key_column, children)
        if self.left < 0 or len(self.path) >= MAX_DEPTH:
            self.refuse(node, (line, column))
        self.open.append(node)
        data: Any = self.mapping(node, children) if type(node) is MappingNode else self.sequence(node, children)
        self.open.pop()
        return data

    def mapping(self, node: MappingNode, children: dict[PathPart, Positions]) -> dict[str, Any]:
        """Return the data of a mapping; merged keys (`<<`) come first and its own keys override them."""
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
        """Return the pairs that the `<<` keys of `node` merge in; later pairs win, in the order of PyYAML."""
        pairs: _Pairs = []
        for key_node, value_node in node.value:
            if key_node.tag == MERGE:
                self.open.append(node)
                if type(value_node) is MappingNode:
                    pairs += self.all_pairs(value_node)
                elif type(value_node) is SequenceNode:
                    for item in reversed(value_node.value):
                        pairs += self.all_pairs(item)
                else:
                    self.bad_merge(value_node)
                self.open.pop()
        return pairs

    def all_pairs(self, node: Node) -> _Pairs:
        """Return all pairs of a mapping that is merged in, including those that it merges itself."""
        if type(node) is not MappingNode:
            self.bad_merge(node)
            return []
        if self.left < 0 or len(self.open) > 4 * MAX_DEPTH or node in self.open:
            self.refuse(node, _position_of(node))
        pairs = self.merged(node) + [pair for pair in node.value if pair[0].tag != MERGE]
        self.left -= len(pairs)
        return pairs

    def key(self, node: Node) -> str:
        """Return the JSON text of a mapping key."""
        position = _position_of(node)
        if type(node) is not ScalarNode:
            self.report.error(
                "key-not-text",
                "Invalid YAML: found unhashable key: a mapping or list cannot be a key",
                position,
                path=self.path,
                suggestion="quote text that starts with '[' or '{'",
            )
            return f"<key {position[0]}:{position[1]}>"
        value = self.scalar(node, position, is_key=True)
        if isinstance(value, str):
            return value
        text = key_text(value)
        self.report.warning(
            "non-text-key",
            f"The key {node.value or '(empty)'} is not text: it becomes '{text}'",
            position,
            path=self.path,
            suggestion=f"write '{node.value}' in quotes if that text is meant",
        )
        return text

    def scalar(self, node: ScalarNode, position: tuple[int, int], *, is_key: bool = False) -> Any:
        """Return the value of a scalar that is not plain text; errors are reported."""
        try:
            value, note = scalar_value(node, is_key=is_key)
        except RefusedError as refused:
            found = shown(node.value) if node.value else None
            self.report.error(
                refused.code, refused.message, position, path=self.path, found=found, suggestion=refused.help
            )
            return None if not is_key else str(node.value)
        if note is not None:
            self.report.warning(note.code, note.message, position, path=self.path, suggestion=note.help)
        return value

    def foreign_tag(self, node: Node) -> None:
        """Report a mapping or list with a tag of another type; it is read as if it had no tag."""
        refused = foreign_tag(node.tag, "mapping" if type(node) is MappingNode else "list")
        self.report.error(refused.code, refused.message, _position_of(node), path=self.path, suggestion=refused.help)

    def duplicate(self, name: str, position: tuple[int, int], first_line: int) -> None:
        """Report a key that occurs twice in one mapping."""
        message = f"Duplicate key '{name}' (first on line {first_line})"
        self.report.error("duplicate-key", message, position, path=self.path, suggestion="keep one of the two")

    def bad_merge(self, node: Node) -> None:
        """Report a `<<` whose value is not a mapping."""
        message = "Invalid YAML: '<<' can merge only a mapping or a list of mappings"
        self.report.error(
            "bad-merge", message, _position_of(node), path=self.path, suggestion="name an anchor of a mapping"
        )

    def refuse(self, node: Node, position: tuple[int, int]) -> None:
        """Report why the document cannot be expanded, and end the pass."""
        if node in self.open:
            message, fix = "This value contains itself through an alias", "remove the alias inside its own anchor"
            self.report.error("recursive-alias", message, position, path=self.path[:4], suggestion=fix)
        elif self.left < 0:
            message = f"The document holds more than {MAX_VALUES} values after aliases are expanded"
            fix = "move large data into a file that data.url names"
            self.report.error("alias-expansion", message, position, path=self.path[:4], suggestion=fix)
        else:
            report_too_deep(self.report, position, tuple(self.path))
        raise _DocumentRefusedError


def _position_of(node: Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1
