"""No code decides by the message of a state: messages are for people, `prefect_ext.state_reasons` has codes.

One module reads the messages of the version before, for one release.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.prefect_ext import run_facts
from tests.unit.house.test_import_contract import MODULES, PACKAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

READS_OLD_FORM = "mloc_prefect.prefect_ext.old_state_messages"
SENTENCES = {
    name for name, value in vars(run_facts).items() if isinstance(value, str) and " " in value and name.isupper()
}
"""Constants that are sentences for people."""

TESTS_OF_TEXT = {"startswith", "endswith", "removeprefix", "removesuffix", "partition", "find", "index", "count"}
PATTERNS = {"match", "search", "fullmatch", "findall", "finditer"}


def names_message(node: ast.AST) -> bool:
    """Whether an expression is, or holds, the message of something, or one of our sentences."""
    mappings = [n.value for n in ast.walk(node) if isinstance(n, ast.Attribute) and n.attr == "get"]
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and inner.attr in {"message", "state_message"} and inner not in mappings:
            return True
        if isinstance(inner, ast.Constant) and inner.value in {"message", "prefect.state-message"}:
            return True
        if isinstance(inner, ast.Name) and inner.id in SENTENCES | {"taken_by"}:
            return True
    return False


def is_key_of(node: ast.Compare) -> bool:
    """Whether a comparison asks if a mapping has a key: `"message" in answer`."""
    return isinstance(node.left, ast.Constant) and node.left.value == "message"


def decisions_by_message(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and not is_key_of(node):
            against_none = all(isinstance(op, ast.Is | ast.IsNot) for op in node.ops)
            if not against_none and any(names_message(side) for side in (node.left, *node.comparators)):
                yield node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            tested = [node.func.value] * (node.func.attr in TESTS_OF_TEXT) + node.args * (node.func.attr in PATTERNS)
            if any(names_message(text) for text in tested):
                yield node.lineno
        elif isinstance(node, ast.Match) and names_message(node.subject):
            yield node.lineno


def test_no_state_message_is_compared():
    wrong = [
        f"{file.relative_to(PACKAGE.parent)}:{line}"
        for module, file in MODULES.items()
        if module != READS_OLD_FORM
        for line in decisions_by_message(ast.parse(file.read_text()))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "code",
    [
        "run.state.message == 'result committed'",
        "run.message.startswith(COMMITTED)",
        "'not run:' in state.message",
        "run['state'].get('message') == why",
        "run['state']['message'] != taken_by(a, b)",
        "state.message in {STOPPED}",
        "(state, message) != (followed.state, followed.message)",
        "re.match('worker (.*) was lost', state.message)",
        "state.message.removeprefix('crashed: ')",
        "found.state_message.partition(':')",
    ],
)
def test_the_scan_sees_decisions_by_message(code: str):
    assert list(decisions_by_message(ast.parse(code))) == [1]


@pytest.mark.parametrize(
    "code",
    [
        "error.message",
        "state.message is None",
        "'message' in answer",
        "f(state.message)",
        "task_id == heard.message.get('task_id')",
    ],
)
def test_the_scan_leaves_other_uses_alone(code: str):
    assert list(decisions_by_message(ast.parse(code))) == []
