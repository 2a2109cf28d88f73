"""Each sentence of the security page is held by tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "security.md"
LAST = "held by"


def promises(text: str) -> list[tuple[str, list[str]]]:
    """Return each row of the tables whose last column is "held by": its sentence, and the tests that it names."""
    found: list[tuple[str, list[str]]] = []
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            inside = False
        elif cells[-1] == LAST:
            inside = True
        elif inside and not set(line) <= set("|-: "):
            found.append((cells[0], re.findall(r"`([^`]+)`", cells[-1])))
    return found


def functions(file: Path) -> set[str]:
    """Return the names of the tests in a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds) and node.name.startswith("test_")}


PROMISES = promises(PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("sentence", "tests"), PROMISES, ids=[sentence[:60] for sentence, _ in PROMISES])
def test_each_sentence_names_tests_that_exist(sentence: str, tests: list[str]) -> None:
    assert tests, f"no test holds: {sentence}"
    for test in tests:
        file, _, name = test.partition("::")
        assert (ROOT / file).is_file(), test
        assert name in functions(ROOT / file), test


def test_the_reader_of_the_page_sees_rows_without_tests() -> None:
    page = (
        "| what | held by |\n|---|---|\n| A. | `x::y`, `x::z` |\n| B. | |\n\n| other | table |\n|---|---|\n| C. | |\n"
    )
    assert promises(page) == [("A.", ["x::y", "x::z"]), ("B.", [])]


def test_every_table_of_promises_has_rows() -> None:
    headers = sum(line.rstrip().endswith(f"| {LAST} |") for line in PAGE.read_text(encoding="utf-8").splitlines())
    assert headers >= 5
    assert len(PROMISES) >= 2 * headers


def test_the_policy_says_how_to_report() -> None:
    policy = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "## How to report" in policy
    assert "docs/security.md" in policy
