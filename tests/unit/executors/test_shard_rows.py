"""Which rows a shard has: every row once, in order, for every form of data."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.prompt_data import load_prompts
from mloc_prefect.executors.sources.source_lookup import SourceLookup
from mloc_prefect.plan.shard_ranges import ShardRange, ShardRequest, shard_spec
from mloc_prefect.tasks.registry import task_type

if TYPE_CHECKING:
    from pathlib import Path

INFERENCE = task_type("inference")
ROWS = 103


@pytest.fixture
def places(tmp_path: Path) -> SourceLookup:
    lines = "".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(ROWS))
    (tmp_path / "rows.jsonl").write_text(lines)
    return SourceLookup.of({"home": str(tmp_path / "home"), "base_dir": str(tmp_path)})


def rows_of(spec: dict[str, Any], places: SourceLookup) -> list[tuple[int, str]]:
    prompts = load_prompts(spec, {}, places)
    return [(prompts.first + i, p.text) for i, p in enumerate(prompts)]


@given(st.integers(0, 500), st.integers(1, 60))
def test_ranges_cut_without_gap_or_overlap_and_differ_by_one_row_at_most(rows: int, total: int) -> None:
    parts = [ShardRange(i, total).rows(rows) for i in range(total)]
    assert [row for part in parts for row in part] == list(range(rows))
    assert {len(part) for part in parts} <= {rows // total, -(-rows // total)}


@pytest.mark.parametrize("total", [1, 2, 3, 5, 8, 200])
@pytest.mark.parametrize(
    "data",
    [
        {"type": "dataset", "url": "rows.jsonl"},
        {"type": "dataset", "url": "rows.jsonl", "split": "train[:64]"},
        {"type": "dataset", "url": "rows.jsonl", "split": "train[10:90]"},
        {"type": "dataset", "url": "rows.jsonl", "split": "train[-7:]"},
        {"type": "dataset", "url": "rows.jsonl", "split": "train[:1%]"},
        {"type": "dataset", "url": "rows.jsonl", "split": "train[5%:15%]"},
        {"type": "dataset", "url": "rows.jsonl", "split": "train[:3]+train[50%:]"},
        {"type": "dataset", "url": "rows.jsonl", "shuffle": True, "seed": 7},
        {"type": "dataset", "url": "rows.jsonl", "split": "train[:20]", "shuffle": True, "max_samples": 11},
        {"type": "list", "items": [f"item {i}" for i in range(23)]},
    ],
)
def test_shards_together_are_the_whole(places: SourceLookup, data: dict[str, Any], total: int) -> None:
    spec = {"data": data}
    whole = rows_of(spec, places)
    count = total if data["type"] == "dataset" else min(total, len(whole))  # of a list no more than it has items
    parts = [rows_of(shard_spec(spec, ShardRange(i, count, "parent")), places) for i in range(count)]
    assert [row for part in parts for row in part] == whole


def test_what_runs_beside_the_items_is_cut_with_them(places: SourceLookup) -> None:
    items, beside = [f"item {i}" for i in range(7)], [{"n": i} for i in range(7)]
    spec = {"data": {"type": "list", "items": items, "metadata": beside}}
    own = [load_prompts(shard_spec(spec, ShardRange(i, 3)), {}, places) for i in range(3)]
    assert [p.metadata["n"] for prompts in own for p in prompts] == list(range(7))
    assert [prompts.first for prompts in own] == [0, 3, 5]
    assert shard_spec(spec, ShardRange(1, 3))["data"]["items"] == items[3:5]


def test_a_list_that_somebody_else_has_not_cut_is_cut_by_its_reader(places: SourceLookup) -> None:
    spec = {"data": {"type": "list", "items": list("abcde")}, "shard": {"index": 1, "total": 2}}
    assert rows_of(spec, places) == [(3, "d"), (4, "e")]


def test_what_is_done_once_for_the_whole_is_not_done_by_shards() -> None:
    spec = {
        "data": {"type": "list", "items": ["a", "b"]},
        "output": {"destination": {"type": "http", "url": "http://x"}, "artifacts": ["a"], "other": 1},
        "postprocess": {"jsonl_export": {"path": "x"}, "other": 1},
        "inference": {"seed": 1},
    }
    own = shard_spec(spec, ShardRange(0, 2, "p"))
    assert own["output"] == {"destination": {"type": "local"}, "artifacts": [], "other": 1}
    assert own["postprocess"] == {"other": 1}
    assert own["shard"] == {"index": 0, "total": 2, "parent_task_id": "p", "first": 0}
    assert spec["data"] == {"type": "list", "items": ["a", "b"]}
    assert ShardRequest.of(INFERENCE, own, default_most=8) is None


@pytest.mark.parametrize(
    "shard", [{}, "1/2", {"index": 2, "total": 2}, {"index": -1, "total": 2}, {"index": True, "total": 2}]
)
def test_a_shard_that_cannot_be_meant_is_refused(places: SourceLookup, shard: Any) -> None:
    with pytest.raises(UserError, match=r"spec.shard must be a mapping with index"):
        load_prompts({"data": {"type": "list", "items": ["a"]}, "shard": shard}, {}, places)


def wish(parallel: Any, replicas: Any = 1, items: int | None = None) -> ShardRequest | None:
    data = {"type": "dataset"} if items is None else {"type": "list", "items": ["x"] * items}
    return ShardRequest.of(
        INFERENCE, {"parallel": parallel, "resources": {"replicas": replicas}, "data": data}, default_most=8
    )


@pytest.mark.parametrize(
    ("parallel", "replicas", "items", "capacity", "expected"),
    [
        ({"enabled": True}, 1, None, 5, 5),
        ({"enabled": True}, 1, None, 20, 8),
        ({"enabled": True, "max_shards": 3}, 1, None, 20, 3),
        ({"enabled": True, "max_shards": "3"}, "4", None, 20, 4),
        ({"enabled": True, "max_shards": "many"}, "x", None, 20, 8),
        ({"enabled": True}, 6, None, 2, 2),
        ({"enabled": True}, 1, None, 0, 1),
        ({"enabled": True}, 1, 2, 20, 2),
        ({"enabled": True, "max_shards": 1}, 1, None, 20, 1),
    ],
)
def test_the_number_of_shards(parallel: Any, replicas: Any, items: int | None, capacity: int, expected: int) -> None:
    found = wish(parallel, replicas, items)
    assert found is not None
    assert found.count(capacity) == expected


@pytest.mark.parametrize("parallel", [None, {}, {"enabled": False}, {"enabled": "no"}, "yes"])
def test_who_does_not_ask_is_not_divided(parallel: Any) -> None:
    assert wish(parallel) is None


def test_one_prompt_is_not_divided() -> None:
    assert (
        ShardRequest.of(INFERENCE, {"parallel": {"enabled": True}, "data": {"type": "graph_template"}}, default_most=8)
        is None
    )
