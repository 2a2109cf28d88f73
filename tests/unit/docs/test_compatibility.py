"""Differences from the original that no recorded conversation shows: each has a test."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[2]
PAGE = (TESTS.parent / "docs" / "compatibility.in.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## What the recorded conversations do not show")[2].partition("\n## ")[0]


def test_every_difference_names_a_test_that_exists() -> None:
    heads = ("|---", "| | the original ")
    rows = [line for line in SECTION.splitlines() if line.startswith("|") and not line.startswith(heads)]
    tests = "\n".join(file.read_text(encoding="utf-8") for file in TESTS.rglob("test_*.py"))
    assert len(rows) > 40
    for row in rows:
        names = re.findall(r"`(test_\w+)(?:\[(\w+)\])?`", row.split("|")[-2])
        assert names, row
        for name, case in names:
            assert f"def {name}(" in tests, name
            assert not case or (TESTS / "invalid" / f"{case}.yaml").is_file(), case
