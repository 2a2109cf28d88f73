"""Divided attempts: shards of their own, retried alone, never done twice."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.errors import ArtifactError, ExecutionError, ExecutionFailure
from mloc_prefect.execution.protocol import ExecutionRequest, UserError
from mloc_prefect.flow.outcome import was_cancelled
from mloc_prefect.flow.shards.shard_progress import ShardProgress
from mloc_prefect.flow.worker_loss import WorkerStoppedError
from tests.support.sharding import DATASET, ROWS, ShardBench, answers, read

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def bench(tmp_path: Path) -> ShardBench:
    return ShardBench(tmp_path)


async def test_the_setting_bounds_the_shards_of_a_task_that_names_no_number(
    bench: ShardBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_AUTO_SHARDS", "2")
    bench.capacity = 5
    assert len(read(await bench())["shards"]) == 2
    bench.root /= "more"
    assert len(read(await bench({"parallel": {"enabled": True, "max_shards": 4}}))["shards"]) == 4


@pytest.mark.parametrize("count", [1, 2, 3, 5, 11, 40])
@pytest.mark.parametrize("data", [{"type": "list", "items": ROWS}, {"type": "dataset", "url": "x"}])
async def test_any_number_of_shards_gives_the_rows_of_the_whole(
    bench: ShardBench, data: dict[str, Any], count: int
) -> None:
    bench.capacity = count
    spec = {"data": data, "parallel": {"enabled": True, "max_shards": 99}}
    found = read(await bench(spec))
    rows = data.get("items", DATASET)
    whole = found["merged"] if count > 1 else found
    assert whole["items"] == [{"index": i, "output": row.upper()} for i, row in enumerate(rows)]


async def test_each_shard_has_a_task_of_its_own(bench: ShardBench) -> None:
    result = await bench()
    bench.inner.requests.sort(key=lambda r: r.spec["shard"]["index"])
    ids = [r.task_id for r in bench.inner.requests]
    assert len(set(ids)) == 3
    for i, request in enumerate(bench.inner.requests):
        directory = bench.root / ids[i]
        assert request.task_dir == str(directory)
        assert request.spec["shard"]["parent_task_id"] == "whole"
        assert json.loads((directory / "responses.json").read_text())["ok"]
        assert json.loads((directory / "manifest.json").read_text())["task_id"] == ids[i]
    assert [e["task_id"] for e in read(result)["shards"]] == ids
    assert bench.events[0].data == {"worker": "MULTI", "protocol": "ours", "flow_run": None}
    assert sorted((t["part"] for t in bench.told("done")), key=lambda s: s["index"]) == [
        {"task_id": ids[i], "index": i, "total": 3} for i in range(3)
    ]


@pytest.mark.parametrize(
    ("spec", "task_type"),
    [
        ({"parallel": {"enabled": False}}, "inference"),
        ({"parallel": {}}, "inference"),
        ({"data": {"type": "graph_template"}}, "inference"),
        ({}, "sft"),
        ({"data": {"type": "list", "items": ["one"]}}, "inference"),
    ],
)
async def test_what_cannot_be_divided_is_passed_on_whole(
    bench: ShardBench, spec: dict[str, Any], task_type: str
) -> None:
    await bench(spec, task_type)
    assert [r.task_id for r in bench.inner.requests] == ["whole"]
    assert "shard" not in bench.inner.requests[0].spec


async def test_progress_is_that_of_the_whole(bench: ShardBench) -> None:
    await bench()
    progress = [e.data for e in bench.events if e.kind == "progress"]
    assert sorted(p["done"] for p in progress) == [p["done"] for p in progress]
    assert progress[0]["total"] == 11  # known from the spec before every shard has said how many it has
    assert progress[-1] == {"done": 11, "total": 11, "tokens_out": 11}


def test_progress_without_a_known_number_of_rows_has_no_total_until_all_say_theirs() -> None:
    progress = ShardProgress(3, None)
    assert progress.add(0, {"done": 1, "total": 4, "device": "cpu"}) == {"done": 1, "total": None}
    assert progress.finished(1, {"rows": 4, "model": "m"}) == {"done": 5, "total": None}
    assert progress.add(2, {"done": 0, "total": 3}) == {"done": 5, "total": 11}
    assert progress.add(0, {"done": 4, "total": 4})["done"] == 8


async def test_a_failed_shard_is_retried_alone(bench: ShardBench) -> None:
    failures = [2]

    def run(request: ExecutionRequest, emit: Callable[..., None]) -> dict[str, Any]:
        emit("placed", worker="w1", protocol="ours", flow_run=None)
        if request.spec["shard"]["index"] == 1 and failures[0]:
            failures[0] -= 1
            raise ExecutionError("killed by SIGKILL")
        return answers(request, emit)

    bench.run = run
    found = read(await bench())
    assert [i["index"] for i in found["merged"]["items"]] == list(range(11))
    assert sorted(r.spec["shard"]["index"] for r in bench.inner.requests) == [0, 1, 1, 1, 2]
    assert [Path(r.attempt_dir).name for r in bench.inner.requests if r.spec["shard"]["index"] == 1] == [
        "1-1",
        "1-2",
        "1-3",
    ]
    first, second = bench.told("failed")
    assert (first["error"], first["final"], first["worker"]) == ("killed by SIGKILL", False, "w1")
    assert second["part_attempt"] == 2
    assert found["shards"][0]["worker_id"] == "w1"


@pytest.mark.parametrize(("retryable", "attempts"), [(True, 3), (False, 1)])
async def test_a_shard_out_of_retries_fails_the_attempt_for_good(
    bench: ShardBench, retryable: bool, attempts: int
) -> None:
    def run(request: ExecutionRequest, emit: Callable[..., None]) -> dict[str, Any]:
        if request.spec["shard"]["index"] == 1:
            raise ExecutionError("no luck", retryable=retryable)
        return answers(request, emit)

    bench.run, bench.settings = run, {"max_retries": 2}
    with pytest.raises(ExecutionError, match=r"Child shard failed: \S+ \(2 of 3\): no luck") as caught:
        await bench()
    assert not caught.value.retryable
    assert len([r for r in bench.inner.requests if r.spec["shard"]["index"] == 1]) == attempts
    assert bench.told("failed")[-1]["final"]


async def test_a_shard_that_is_cancelled_where_it_runs_cancels_the_whole(bench: ShardBench) -> None:
    def run(request: ExecutionRequest, emit: Callable[..., None]) -> dict[str, Any]:
        if request.spec["shard"]["index"] == 1:
            failure = ExecutionFailure("cancelled", kind="cancelled")
            raise ExecutionError("cancelled", retryable=False, failure=failure)
        return answers(request, emit)

    bench.run = run
    with pytest.raises(ExecutionError) as caught:
        await bench()
    assert was_cancelled(caught.value)
    assert bench.told("failed") == []


async def test_stops_of_workers_cost_a_shard_no_retry(bench: ShardBench) -> None:
    """Neither within one start of the run, nor those that ended a start."""
    left = [5]

    def run(request: ExecutionRequest, emit: Callable[..., None]) -> dict[str, Any]:
        if request.spec["shard"]["index"] == 1 and left[0]:
            left[0] -= 1
            raise WorkerStoppedError("w was stopped", "w")
        return answers(request, emit)

    def lost(request: ExecutionRequest, emit: Callable[..., None]) -> dict[str, Any]:
        if request.spec["shard"]["index"] == 1:
            raise ExecutionError("no luck")
        return answers(request, emit)

    bench.run, bench.settings = lost, {"max_retries": 1}
    with pytest.raises(ExecutionError, match="no luck"):
        await bench()
    bench.run_count, bench.stopped = 2, frozenset({1})
    with pytest.raises(ExecutionError, match="no luck"):
        await bench()
    assert len([r for r in bench.inner.requests if r.spec["shard"]["index"] == 1]) == 2, "the first start is forgiven"
    bench.run, bench.run_count = run, 3
    await bench()
    assert len([r for r in bench.inner.requests if r.spec["shard"]["index"] == 1]) == 6


async def test_finished_shards_are_not_repeated_and_the_division_stays(bench: ShardBench) -> None:
    async def run(request: ExecutionRequest, emit: Callable[..., None]) -> dict[str, Any]:
        if request.spec["shard"]["index"] == 2:
            while len(bench.told("done")) < 2:  # a failure gives up the shards that are not done yet
                await asyncio.sleep(0.01)
            raise UserError("row 9 is odd")
        return answers(request, emit)

    bench.run = run
    with pytest.raises(ExecutionError, match="row 9 is odd"):
        await bench()
    bench.run, bench.capacity, bench.run_count = answers, 8, 2
    result = await bench()
    assert [r.spec["shard"]["index"] for r in bench.inner.requests] == [2]
    assert [i["output"] for i in read(result)["merged"]["items"]] == [r.upper() for r in ROWS]
    assert [t["reused"] for t in bench.told("done") if t.get("reused")] == [True, True]
    await bench()
    assert bench.inner.requests == []


async def test_another_spec_is_divided_anew(bench: ShardBench) -> None:
    await bench()
    bench.capacity = 2
    found = read(await bench({"data": {"type": "list", "items": ROWS[:5]}}))
    assert [len(e["result"]["items"]) for e in found["shards"]] == [3, 2]


async def test_a_task_that_was_begun_in_one_piece_stays_so(bench: ShardBench) -> None:
    attempt = bench.root / "whole" / "attempts" / "1-1"
    attempt.mkdir(parents=True)
    (attempt / "items.jsonl").write_text("")
    await bench()
    assert [r.task_id for r in bench.inner.requests] == ["whole"]


async def test_what_shards_say_is_passed_on_under_their_names(bench: ShardBench) -> None:
    def run(request: ExecutionRequest, emit: Callable[..., None]) -> dict[str, Any]:
        emit("phase", text="loading weights")
        emit("waiting", reason="no room")
        return answers(request, emit)

    bench.run = run
    await bench()
    phases = [e.data for e in bench.events if e.kind == "phase"]
    assert {"text": "shard 2/3: loading weights", "shard": 1} in phases
    assert len(phases) == 4
    assert [t["reason"] for t in bench.told("waiting")] == ["no room"] * 3
    assert not [e for e in bench.events if e.kind == "waiting"]


async def test_a_shard_that_cannot_be_committed_is_reported_as_failed(
    bench: ShardBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise ArtifactError("cannot write: No space left on device")

    monkeypatch.setattr("mloc_prefect.flow.commit.commit_manifest", full)
    with pytest.raises(ArtifactError, match="No space left"):
        await bench()
    assert {fact["final"] for fact in bench.told("failed")} == {True}
