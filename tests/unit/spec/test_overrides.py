"""`--set path=value`."""

from __future__ import annotations

import pytest

from mloc_prefect.spec.loader import read_spec
from tests.unit.spec.test_loader import BASE, STAGES, workflow


def test_values_are_yaml_and_missing_mappings_are_made() -> None:
    overrides = [
        "spec.inference.max_tokens=32",
        "spec.inference.stop=[a, b]",
        "spec.data.items[0]=it's: fine",
        "spec.inference.system_prompt=",
        "metadata.name=other",
        "spec.enforce_cpu=yes",
    ]
    result, found = read_spec(BASE, overrides=overrides)
    assert [d.code for d in found] == ["invalid-type"]  # "it's: fine" is a mapping, as in YAML
    assert found[0].file == "--set"
    result = workflow(BASE, overrides=[o for o in overrides if "fine" not in o])
    spec = result.nodes[0].effective["spec"]
    assert spec["inference"] == {"max_tokens": 32, "stop": ["a", "b"], "system_prompt": ""}
    assert spec["enforce_cpu"] is True
    assert result.name == "other"


def test_stages_and_nodes_are_reached_by_name() -> None:
    result = workflow(
        BASE + STAGES.replace("name: first", "name: v1.5").replace("${first", "${x").replace("[first", "[v1.5"),
        overrides=[
            "stages.v1.5.spec.inference.top_k=3",
            "spec.stages.third.spec.priority=2",
            "stages.stage-2.spec.x.y=1",
        ],
    )
    first, second, third = (n.effective["spec"] for n in result.nodes)
    assert first["inference"]["top_k"] == 3
    assert second["x"] == {"y": 1}
    assert third["priority"] == 2
    graph = BASE + "  graph: {nodes: [{name: a}, {name: b, spec: null}]}\n"
    for path in ("nodes.b.spec.priority", "spec.graph.nodes.b.spec.priority", "spec.graph.nodes[1].spec.priority"):
        assert workflow(graph, overrides=[f"{path}=4"]).nodes[1].effective["spec"]["priority"] == 4


@pytest.mark.parametrize(
    "override, advice",
    [
        ("spec.inference.max_tokens", "write path=value"),
        ("=3", "write path=value"),
        ("[0]=3", "write path=value"),
        ("stages.frist.spec.x=1", "did you mean 'first'?"),
        ("nodes.first.spec.x=1", "the spec has no nodes"),
        ("spec.data.items[4]=x", "spec.data.items has 1 entries, counted from 0"),
        ("spec.data.items.x=1", "spec.data.items is a list: use [n]"),
        ("spec.data.type.x=1", 'spec.data.type is "list", which has no fields'),
        (".".join(["spec"] * 99) + "=1", "more than 64 parts"),
        ("spec.query=[", "the value cannot be read"),
        ("spec.query=.inf", "the value cannot be read"),
    ],
)
def test_paths_that_lead_nowhere(override: str, advice: str) -> None:
    _, found = read_spec(BASE + STAGES, overrides=[override])
    bad = [d for d in found if d.code == "bad-override"]
    assert len(bad) == 1
    assert str(bad[0]).startswith(f"--set: error[bad-override]: Cannot set '{override}'")
    assert advice in (bad[0].suggestion or "")


def test_faults_of_overrides_are_told_apart_by_path() -> None:
    _, found = read_spec(BASE, overrides=["spec.inference.top_p=7", "spec.inference.temprature=1", "spec.search=1"])
    assert [(d.file, d.line, d.code, d.path) for d in found] == [
        ("--set", 0, "out-of-range", "spec.inference.top_p"),
        ("--set", 0, "unknown-field", "spec.search"),
        ("--set", 0, "unknown-field", "spec.inference.temprature"),
    ]


def test_an_override_that_stages_replace_is_a_warning() -> None:
    _, found = read_spec(BASE + STAGES, overrides=["spec.inference.temperature=0.5", "spec.inference.max_tokens=4"])
    assert [(d.code, d.path, d.suggestion) for d in found] == [
        ("override-shadowed", "spec.inference.temperature", "set stages.first.spec.inference.temperature as well")
    ]
