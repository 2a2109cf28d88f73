"""Expansion of stages and graphs: merging, names, and errors of single items."""

from __future__ import annotations

import pytest

from mloc_prefect.spec.loader import read_spec
from tests.unit.spec.test_loader import BASE, STAGES, heads, workflow


def test_stages_merge_deeply_and_share_nothing() -> None:
    result = workflow(BASE + STAGES)
    assert result.kind == "stages"
    assert [n.node for n in result.nodes] == ["first", "stage-2", "third"]
    assert [n.name for n in result.nodes] == ["demo:first", "demo:stage-2", "demo:third"]
    assert [n.depends_on for n in result.nodes] == [None, None, ("first", "7")]
    first, second, third = (n.effective["spec"] for n in result.nodes)
    assert first["inference"] == {"temperature": 0.1, "max_tokens": 16}
    assert second["data"] == {"type": "list", "items": ["${first.result.items[0].output}"]}
    assert "stages" not in first
    third["data"]["items"].append("x")
    third["inference"]["temperature"] = 9
    assert first["data"]["items"] == ["hello"]
    assert second["inference"]["temperature"] == 0.7
    assert result.document["spec"]["data"]["items"] == ["hello"]


def test_null_and_lists_replace() -> None:
    text = (
        BASE
        + "  stop: [a, b]\n  stages:\n    - name: s\n      spec: {stop: [c], data: null, resources: {replicas: 2}}\n"
    )
    result, found = read_spec(text)
    assert result is not None
    spec = result.nodes[0].effective["spec"]
    assert spec["stop"] == ["c"]
    assert spec["data"] is None
    assert spec["resources"]["hardware"]["cpu"] == "4"
    assert "spec.data is required." in [d.message for d in found]


def test_graph_nodes_take_name_then_id_then_number() -> None:
    text = (
        BASE
        + "  graph:\n    nodes:\n      - {name: ' a ', dependsOn: []}\n      - {id: b, dependsOn: [a]}\n      - {}\n"
    )
    result = workflow(text)
    assert result.kind == "graph"
    assert [(n.node, n.depends_on) for n in result.nodes] == [("a", ()), ("b", ("a",)), ("node-3", None)]
    assert "graph" not in result.nodes[0].effective["spec"]


@pytest.mark.parametrize(
    "more, expected",
    [
        ("  stages: [{name: a}, {name: a}]\n", [("duplicate-stage-name", "Duplicate stage name 'a'")]),
        ("  stages: [{name: stage-2}, {}]\n", [("duplicate-stage-name", "Duplicate stage name 'stage-2'")]),
        ("  graph: {nodes: [{id: a}, {name: a}]}\n", [("duplicate-node-name", "Duplicate graph node name 'a'")]),
        ("  graph: {nodes: [{name: '  '}]}\n", [("empty-node-name", "Each graph node requires a non-empty name")]),
        (
            "  graph: {nodes: [{name: a, dependsOn: b}]}\n",
            [("depends-on-not-list", "Node 'a' dependsOn must be a list")],
        ),
        ("  stages: [{name: a, dependsOn: b}]\n", [("depends-on-not-list", "stage.dependsOn must be a list")]),
        ("  dependsOn: x\n", [("depends-on-not-list", "spec.dependsOn must be a list of task_ids")]),
        ("  dependsOn: [[x]]\n", [("invalid-type", "Each entry of dependsOn must be text")]),
        ("  stages: [hello]\n", [("invalid-item", "Each stage must be a mapping")]),
        ("  graph: {nodes: [null]}\n", [("invalid-item", "Each graph node must be a mapping")]),
        ("  stages: [{spec: hello}]\n", [("invalid-type", "spec must be a mapping")]),
        ("  stages: [{name: [x]}]\n", [("invalid-type", "name must be text")]),
    ],
)
def test_faults_of_stages_and_nodes(more: str, expected: list[tuple[str, str]]) -> None:
    _, found = read_spec(BASE + more)
    assert [(d.code, d.message) for d in found] == expected


def test_graph_wins_over_stages_but_both_are_an_error() -> None:
    result, found = read_spec(BASE + "  stages: [{name: a}]\n  graph: {nodes: [{name: b}]}\n")
    assert result is not None
    assert result.kind == "graph"
    assert heads(found) == ["11:3 graph-and-stages"]


@pytest.mark.parametrize("more", ["  stages: []\n", "  stages: {a: {}}\n", "  graph: {nodes: []}\n", "  graph: [a]\n"])
def test_empty_stages_are_one_task_with_a_warning(more: str) -> None:
    result, found = read_spec(BASE + more)
    assert result is not None
    assert result.kind == "single"
    assert more.split(":")[0].strip() in result.nodes[0].effective["spec"]
    assert [(d.code, d.severity) for d in found] == [("stages-ignored", "warning")]


def test_fields_beside_the_spec_of_a_stage_are_told_where_to_go() -> None:
    _, found = read_spec(BASE + "  stages:\n    - name: a\n      inference: {top_p: 1}\n      dependOn: []\n")
    assert heads(found) == ["13:7 unknown-field", "14:7 unknown-field"]
    assert found[0].suggestion == "move 'inference' under the spec of this entry"
    assert found[1].suggestion == "did you mean 'dependsOn'?"


def test_a_fault_of_the_base_is_said_once_and_at_the_base() -> None:
    text = (
        BASE
        + "  inference: {top_p: 2}\n  stages:\n    - name: a\n    - name: b\n"
        + "    - {name: c, spec: {inference: {top_p: 3}}}\n"
    )
    _, found = read_spec(text)
    assert heads(found) == ["11:22 out-of-range", "15:43 out-of-range"]
    assert [d.path for d in found] == ["spec.inference.top_p", "spec.stages[2].spec.inference.top_p"]
    assert [d.found for d in found] == ["2", "3"]


def test_a_fault_through_an_anchor_stands_where_it_was_written() -> None:
    text = BASE + "  x-shared: &s {temperature: hot}\n  stages:\n    - name: a\n      spec: {inference: {<<: *s}}\n"
    _, found = read_spec(text)
    assert [h for h in heads(found) if "unknown" not in h] == ["11:30 invalid-type"]


def test_what_is_missing_in_a_stage_is_shown_at_that_stage() -> None:
    text = BASE.replace(
        "  data: {type: list, items: [hello]}\n", "  stages:\n    - name: a\n    - name: b\n      spec: {}\n"
    )
    _, found = read_spec(text)
    assert heads(found) == ["11:7 missing-data", "13:7 missing-data"]
    assert [d.path for d in found] == ["spec.stages[0].spec.data", "spec.stages[1].spec.data"]


def test_base_fields_of_other_task_types_are_fine_when_some_stage_reads_them() -> None:
    text = BASE + (
        "  lora: {r: 8}\n  stages:\n    - name: a\n"
        "    - {name: b, spec: {taskType: lora_sft, lora: {alpha: 4}, data: {prompts: [x]}}}\n"
    )
    assert read_spec(text)[1] == ()
    _, found = read_spec(BASE + "  lora: {r: 8}\n")
    assert heads(found) == ["11:3 unknown-field"]
    assert "lora_sft" in (found[0].suggestion or "")
