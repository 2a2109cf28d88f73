"""Exact rows for workers that only know splits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.errors import ExecutionError
from mloc_prefect.execution.protocol import ExecutionRequest
from mloc_prefect.executors.common.prompt_data import load_prompts
from mloc_prefect.executors.sources.source_lookup import SourceLookup
from mloc_prefect.mloc_workers.row_ranges import exact_spec, split_of
from mloc_prefect.plan.shard_ranges import ShardRange, shard_spec

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 41


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(ROWS)))
    return {"home": str(tmp_path / "home"), "base_dir": str(tmp_path)}


def request(spec: dict[str, Any], settings: dict[str, Any], parent: str = "p") -> ExecutionRequest:
    return ExecutionRequest(parent, "n", "inference", "x:Y", spec, "/t", "/t/a", settings=settings)


@pytest.mark.parametrize("total", [1, 2, 3, 7, 50])
@pytest.mark.parametrize(
    "data",
    [
        {},
        {"split": "train[:17]"},
        {"split": "train[10%:33.333333%]"},
        {"split": "train[:5]+train[-4:]"},
        {"split": "train[3:]", "max_samples": 11},
    ],
)
def test_splits_of_parts_are_the_whole_row_by_row(settings: dict[str, Any], data: dict[str, Any], total: int) -> None:
    spec = {"data": {"type": "dataset", "url": "rows.jsonl", **data}}
    whole = [p.text for p in load_prompts(spec, {}, SourceLookup.of(settings))]
    found = []
    for index in range(total):
        own = shard_spec(spec, ShardRange(index, total, f"{data}"))
        sent = exact_spec(request(own, settings))["data"]
        assert "max_samples" not in sent
        assert "%" not in sent["split"]
        if "[0:0]" not in sent["split"]:  # as a worker reads it that knows nothing of shards
            found += [p.text for p in load_prompts({"data": sent}, {}, SourceLookup.of(settings))]
    assert found == whole


def test_rows_are_counted_once_for_each_task(settings: dict[str, Any], tmp_path: Path) -> None:
    spec = {"data": {"type": "dataset", "url": "rows.jsonl"}}
    first = exact_spec(request(shard_spec(spec, ShardRange(0, 2, "one task")), settings))
    (tmp_path / "rows.jsonl").unlink()
    second = exact_spec(request(shard_spec(spec, ShardRange(1, 2, "one task")), settings))
    assert [s["data"]["split"] for s in (first, second)] == ["train[0:21]", "train[21:41]"]
    with pytest.raises(ExecutionError, match="the rows cannot be counted"):
        exact_spec(request(shard_spec(spec, ShardRange(0, 2, "another")), settings))


def test_a_bounded_shuffle_cannot_be_divided_for_them(settings: dict[str, Any]) -> None:
    spec = {"data": {"type": "dataset", "url": "rows.jsonl", "shuffle": True, "max_samples": 3}}
    with pytest.raises(ExecutionError, match="shards of a shuffled data set that max_samples bounds") as caught:
        exact_spec(request(shard_spec(spec, ShardRange(0, 2, "p")), settings))
    assert not caught.value.retryable


@pytest.mark.parametrize(
    "spec",
    [
        {"data": {"type": "dataset", "url": "nowhere"}},
        shard_spec({"data": {"type": "list", "items": ["a", "b"]}}, ShardRange(0, 2, "p")),
    ],
)
def test_what_is_no_part_of_a_data_set_is_sent_as_it_is(settings: dict[str, Any], spec: dict[str, Any]) -> None:
    assert exact_spec(request(spec, settings)) is spec


def test_ranges_over_several_splits() -> None:
    parts = [("a", range(5, 9)), ("b", range(10))]
    assert split_of(parts, range(4)) == "a[5:9]"
    assert split_of(parts, range(3, 6)) == "a[8:9]+b[0:2]"
    assert split_of(parts, range(0)) == "a[0:0]"
