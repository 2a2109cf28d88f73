"""The pages for contributors name modules, folders and packages that exist."""

from __future__ import annotations

import re

import pytest

from tests.unit.house.test_import_contract import LEVELS, PACKAGE

ROOT = PACKAGE.parent
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PAGES = {"docs/architecture.md": ARCHITECTURE, "AGENTS.md": (ROOT / "AGENTS.md").read_text(encoding="utf-8")}
SUFFIXES = r"(?:py|md|toml|txt|yaml|sh)"
PATH = re.compile(rf"`((?:[\w.-]+/)*[\w-]+\.{SUFFIXES}|(?:[\w.-]+/)+)`")
"""A file, or a folder with its slash, in backticks."""


def paths(page: str) -> list[str]:
    """Return the paths that a page names, without its code blocks."""
    text = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    return PATH.findall(text)


def exists(name: str) -> bool:
    """Return whether a path exists, from the root, in the package, or by file name alone somewhere in the package."""
    if (ROOT / name).exists() or (PACKAGE / name).exists():
        return True
    return "/" not in name.rstrip("/") and any(PACKAGE.rglob(name.rstrip("/")))


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page: str) -> None:
    named = paths(PAGES[page])
    assert named, "the pattern finds nothing"
    assert [name for name in named if not exists(name)] == []


def test_a_path_that_does_not_exist_is_found() -> None:
    assert paths("see `flow/no_such_module.py`, `no_such_folder/` and `GET /workers`") == [
        "flow/no_such_module.py",
        "no_such_folder/",
    ]
    assert not exists("flow/no_such_module.py")
    assert not exists("no_such_folder/")
    assert exists("flow/stage_runner.py")
    assert exists("tests/unit/docs/")


def test_the_table_has_every_package_on_its_level() -> None:
    rows = re.findall(r"^\| (\d+) \| `([\w.]+)/?` \|", ARCHITECTURE, re.MULTILINE)
    listed = {name.removesuffix(".py"): int(level) for level, name in rows}
    packages = {name: level for name, level in LEVELS.items() if name not in {"mloc_prefect", "version"}}
    assert listed == packages
