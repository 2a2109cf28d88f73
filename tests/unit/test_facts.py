"""The specs that MLOC itself was watched with: same tasks, same edges, same effective documents.

`specs/facts.json` lies beside the checkout in CI. Where it does not, the frozen hashes of our own templates
(`test_templates.py`) stand for it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mloc_prefect.plan import check
from tests.golden.update import ROOT, canonical_sha256

SPECS = ROOT.parent / "shared" / "mloc" / "specs"
FACTS: list[dict[str, Any]] = []
if (SPECS / "facts.json").is_file():
    FACTS = json.loads((SPECS / "facts.json").read_text(encoding="utf-8"))["specs"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test for each file that is there, and none that is skipped."""
    if "fact" in metafunc.fixturenames and FACTS:
        metafunc.parametrize("fact", FACTS, ids=[fact["file"] for fact in FACTS])


def _tasks(path: Path) -> tuple[str, list[dict[str, Any]], list[list[str]]]:
    plan, found = check(path.read_bytes(), path.name)
    assert plan is not None, "\n".join(map(str, found))
    document = plan.to_dict()
    tasks = [{k: v for k, v in task.items() if k != "effective"} for task in document["tasks"]]
    for task, full in zip(tasks, document["tasks"], strict=True):
        task["effective_sha256"] = canonical_sha256(full["effective"])
    edges = [[above, stage.key] for stage in plan.stages for above in stage.depends_on]
    return document["kind"], tasks, edges


if FACTS:

    def test_facts(fact: dict[str, Any]) -> None:
        kind, tasks, edges = _tasks(SPECS / fact["file"])
        assert kind == fact["kind"]
        assert tasks == fact["tasks"]
        assert edges == fact["edges"]

    def test_all_facts_are_compared() -> None:
        assert len(FACTS) == 20
        assert {fact["file"] for fact in FACTS} == {file.name for file in SPECS.glob("*.yaml")}


def test_the_reading_of_plans_used_here() -> None:
    kind, tasks, edges = _tasks(ROOT / "templates" / "graph.yaml")
    assert (kind, edges) == ("graph", [["for", "verdict"], ["against", "verdict"]])
    assert [task["name"] for task in tasks] == ["two-views:for", "two-views:against", "two-views:verdict"]
    assert tasks[2]["depends_on"] == ["for", "against"]
