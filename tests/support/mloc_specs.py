"""The specs that MLOC itself was recorded with. They are next to the checkout in CI; elsewhere tests skip them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

SPECS = Path(__file__).resolve().parents[3] / "shared" / "mloc" / "specs"

ABSENT = pytest.param(
    None,
    id="absent",
    marks=pytest.mark.skip(reason=f"the recorded specs of MLOC are not in {SPECS.parent.name}/{SPECS.name}"),
)


def spec_files() -> list[Any]:
    """Return one parameter per file, or a single one that is skipped."""
    return [pytest.param(file, id=file.name) for file in sorted(SPECS.glob("*.yaml"))] or [ABSENT]


def spec_facts() -> list[Any]:
    """Return one parameter per recorded file, or a single one that is skipped."""
    facts = SPECS / "facts.json"
    found = json.loads(facts.read_text(encoding="utf-8"))["specs"] if facts.is_file() else ()
    return [pytest.param(fact, id=fact["file"]) for fact in found] or [ABSENT]
