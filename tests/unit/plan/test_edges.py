"""Who waits for whom, and the order of emission. [protocol 2.5]"""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mloc_prefect.errors import SpecError
from mloc_prefect.plan import WorkflowPlan, check, plan_workflow
from mloc_prefect.plan.edges import emission_order, is_task_id
from mloc_prefect.spec.expand import MAX_TASKS
from mloc_prefect.spec.loader import load_spec

UUID = "3f2b8c1e-0d4a-4f6b-9c7d-1a2b3c4d5e6f"


def spec(**more: Any) -> str:
    """Return the text of an echo spec."""
    base = {
        "apiVersion": "mloc/v1",
        "kind": "EchoTask",
        "metadata": {"name": "w"},
        "spec": {
            "taskType": "echo",
            "resources": {"replicas": 1, "hardware": {"cpu": "1", "memory": "1Gi"}},
            **more,
        },
    }
    return yaml.safe_dump(base, sort_keys=False)


def graph(*nodes: tuple[str, list[str] | None]) -> str:
    """Return a graph of names and their dependsOn."""
    return spec(graph={"nodes": [{"name": n, **({} if d is None else {"dependsOn": d})} for n, d in nodes]})


def stages(*items: tuple[str, list[str] | None]) -> str:
    """Return stages of names and their dependsOn."""
    return spec(stages=[{"name": n, **({} if d is None else {"dependsOn": d})} for n, d in items])


def plan(text: str) -> WorkflowPlan:
    """Return the plan of a valid spec."""
    return plan_workflow(load_spec(text))


def _edges(text: str) -> dict[str, tuple[str, ...]]:
    return {stage.key: stage.depends_on for stage in plan(text).stages}


def test_stages_are_a_chain() -> None:
    assert _edges(stages(("a", None), ("b", None), ("c", None))) == {"a": (), "b": ("a",), "c": ("b",)}


def test_a_list_replaces_the_implicit_edge() -> None:
    text = stages(("a", None), ("b", []), ("c", ["a"]), ("d", None))
    assert _edges(text) == {"a": (), "b": (), "c": ("a",), "d": ("c",)}


def test_stage_names_resolve_forward_too() -> None:
    text = stages(("a", ["c"]), ("b", ["a"]), ("c", []))
    assert [stage.key for stage in plan(text).stages] == ["c", "a", "b"]


def test_stages_without_names_are_numbered() -> None:
    assert _edges(spec(stages=[{}, {"name": "x"}, {}])) == {"stage-1": (), "x": ("stage-1",), "stage-3": ("x",)}


def test_graph_nodes_have_no_implicit_edge() -> None:
    assert _edges(graph(("a", None), ("b", []), ("c", ["b", " a ", "b", ""]))) == {"a": (), "b": (), "c": ("b", "a")}


def test_task_ids_are_external() -> None:
    stage = plan(graph(("a", None), ("b", [UUID, "a"]))).stage("b")
    assert (stage.depends_on, stage.external) == (("a",), (UUID,))
    assert stage.to_dict()["depends_on"] == ["a", UUID]


def test_a_single_task_waits_for_task_ids() -> None:
    built = plan(spec(dependsOn=[UUID, " "]))
    assert built.kind == "single"
    assert [(s.key, s.node, s.depends_on, s.external) for s in built.stages] == [("w", None, (), (UUID,))]


def test_a_single_task_cannot_wait_for_its_own_name() -> None:
    _, found = check(spec(dependsOn=["w"]))
    assert [d.code for d in found] == ["unknown-dependency"]


def test_a_stage_that_only_waits_for_other_submissions_says_so() -> None:
    built = plan(stages(("a", None), ("b", [UUID])))
    assert built.stage("b").depends_on == ()
    assert any("does not wait for 'a'" in note for note in built.stage("b").notes)


@pytest.mark.parametrize(
    ("nodes", "message", "code"),
    [
        ([("a", ["b"]), ("b", ["a"])], "a, b", "dependency-cycle"),
        ([("x", None), ("a", ["c", "x"]), ("b", ["a"]), ("c", ["b"]), ("d", ["b"])], "a, b, c, d", "dependency-cycle"),
        ([("a", ["a"]), ("b", ["a"])], "a, b", "self-dependency"),
    ],
)
def test_cycles_keep_the_original_text(nodes: list[tuple[str, list[str]]], message: str, code: str) -> None:
    with pytest.raises(SpecError) as caught:
        plan(graph(*nodes))
    (found,) = caught.value.diagnostics
    assert (found.code, found.message) == (code, f"Graph contains cycles or unresolved deps: {message}")


def test_a_cycle_is_shown_at_an_edge_of_the_cycle() -> None:
    _, found = check(graph(("below", ["a"]), ("a", ["b"]), ("b", ["a"])))
    assert found[0].path == "spec.graph.nodes[1].dependsOn[0]"


def test_unknown_names_suggest_near_ones() -> None:
    _, found = check(graph(("branch-a", None), ("join", ["brnch-a", "zzz"])))
    assert [d.suggestion for d in found] == ["did you mean 'branch-a'?", "the names are: branch-a, join"]
    assert [d.path for d in found] == ["spec.graph.nodes[1].dependsOn[0]", "spec.graph.nodes[1].dependsOn[1]"]


def test_a_broken_dependency_is_not_reported_twice() -> None:
    text = spec(
        graph={
            "nodes": [
                {"name": "first", "spec": {"data": 1}},
                {"name": "next", "dependsOn": ["frist"], "spec": {"data": "${first.result.echo.data}"}},
            ]
        }
    )
    assert [d.code for d in check(text)[1]] == ["unknown-dependency"]


def test_too_many_tasks() -> None:
    with pytest.raises(SpecError, match=f"{MAX_TASKS + 1} tasks are more than the {MAX_TASKS}"):
        plan(spec(stages=[{}] * (MAX_TASKS + 1)))


def test_a_long_reversed_chain_is_planned_in_linear_steps() -> None:
    count = 1500
    nodes = [(f"n{i}", [f"n{i + 1}"] if i < count - 1 else None) for i in range(count)]
    order = emission_order(tuple(n for n, _ in nodes), {n: tuple(d or ()) for n, d in nodes})
    assert order == tuple(f"n{i}" for i in reversed(range(count)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [(UUID, True), (UUID.upper(), True), (f"{UUID} ", False), (UUID[:-1], False), (UUID.replace("-", ""), False)],
)
def test_is_task_id(text: str, expected: bool) -> None:
    assert is_task_id(text) == expected


def _by_passes(keys: tuple[str, ...], depends_on: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Do what the protocol says, word for word."""
    placed: list[str] = []
    left = list(keys)
    while left:
        before = len(placed)
        for key in list(left):
            if all(up in placed for up in depends_on[key]):
                placed.append(key)
                left.remove(key)
        if len(placed) == before:
            break
    return tuple(placed)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 9).flatmap(
        lambda n: st.lists(st.frozensets(st.integers(0, n - 1), max_size=3), min_size=n, max_size=n)
    )
)
def test_emission_order_is_that_of_repeated_passes(edges: list[frozenset[int]]) -> None:
    keys = tuple(f"n{i}" for i in range(len(edges)))
    depends_on = {f"n{i}": tuple(f"n{j}" for j in sorted(above)) for i, above in enumerate(edges)}
    assert emission_order(keys, depends_on) == _by_passes(keys, depends_on)
