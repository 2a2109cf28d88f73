"""The specs that MLOC itself was watched with: same tasks, same edges, same effective documents.

Where they are missing, the frozen hashes of our own templates (`test_templates.py`) stand for them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mloc_prefect.plan import check
from tests.golden.update import ROOT, canonical_sha256
from tests.support.mloc_specs import ABSENT, SPECS, spec_facts

FACTS = spec_facts()


def _tasks(path: Path) -> tuple[str, list[dict[str, Any]], list[list[str]]]:
    plan, found = check(path.read_bytes(), path.name)
    assert plan is not None, "\n".join(map(str, found))
    document = plan.to_dict()
    tasks = [{k: v for k, v in task.items() if k != "effective"} for task in document["tasks"]]
    for task, full in zip(tasks, document["tasks"], strict=True):
        task["effective_sha256"] = canonical_sha256(full["effective"])
    edges = [[above, stage.key] for stage in plan.stages for above in stage.depends_on]
    return document["kind"], tasks, edges


@pytest.mark.parametrize("fact", FACTS)
def test_facts(fact: dict[str, Any]) -> None:
    kind, tasks, edges = _tasks(SPECS / fact["file"])
    assert kind == fact["kind"]
    assert tasks == fact["tasks"]
    assert edges == fact["edges"]


@pytest.mark.skipif(FACTS == [ABSENT], reason="the recorded specs of MLOC are not here")
def test_all_facts_are_compared() -> None:
    assert len(FACTS) == 20
    assert {fact.id for fact in FACTS} == {file.name for file in SPECS.glob("*.yaml")}


def test_the_reading_of_plans_used_here() -> None:
    kind, tasks, edges = _tasks(ROOT / "templates" / "graph.yaml")
    assert (kind, edges) == ("graph", [["for", "verdict"], ["against", "verdict"]])
    assert [task["name"] for task in tasks] == ["two-views:for", "two-views:against", "two-views:verdict"]
    assert tasks[2]["depends_on"] == ["for", "against"]


def test_null_values_are_present_but_what_no_worker_could_run_is_refused() -> None:
    """Documented in docs/compatibility.md: the original takes such a spec, and its worker fails."""
    base = "apiVersion: null\nkind: null\nmetadata: {name: null}\nspec:\n  taskType: {kind}\n"
    text = base + "  resources: {replicas: null, hardware: {cpu: null, memory: null}}\n"
    codes = {
        kind: {d.code for d in check(text.replace("{kind}", kind).encode(), "f.yaml")[1]}
        for kind in ("null", "inference")
    }
    assert "missing-field" not in codes["null"] | codes["inference"]
    assert "unknown-task-type" in codes["null"]
    assert "missing-data" in codes["inference"]
