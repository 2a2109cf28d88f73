"""The merged result of a divided task."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.errors import ArtifactError, ExecutionError
from mloc_prefect.execution.protocol import ExecutionRequest
from mloc_prefect.flow.dispatcher import MemoryDispatcher, StageJob
from mloc_prefect.flow.shards.sharding_dispatcher import ShardingDispatcher, ShardScope
from mloc_prefect.plan.resources import ResourceRequest
from mloc_prefect.settings import get_settings
from mloc_prefect.tasks.base import ExecutorRef
from tests.support.sharding import ROWS, ShardBench, answers, read

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.execution.protocol import ExecutionResult


@pytest.fixture
def bench(tmp_path: Path) -> ShardBench:
    return ShardBench(tmp_path)


async def test_the_merged_result_has_the_documented_shape(bench: ShardBench) -> None:
    result = await bench()
    whole = json.loads(Path(result.path).read_text())
    assert list(whole) == ["task_id", "worker_id", "metadata", "received_at", "result"]
    assert (whole["task_id"], whole["worker_id"]) == ("whole", "MULTI")
    assert whole["metadata"] == {"aggregated": True, "shards": 3}
    assert datetime.fromisoformat(whole["received_at"]).utcoffset() is not None
    found = read(result)
    assert list(found) == ["shards", "merged"]
    assert [list(e) for e in found["shards"]] == [["task_id", "worker_id", "metadata", "received_at", "result"]] * 3
    assert [len(e["result"]["items"]) for e in found["shards"]] == [4, 4, 3]
    merged = found["merged"]
    assert merged["items"] == [{"index": i, "output": row.upper()} for i, row in enumerate(ROWS)]
    assert merged["usage"] == {"prompt_tokens": 11, "latency_sec": 0.75}
    assert merged["model"] == "m"


async def test_rows_that_are_missing_are_an_error_and_no_result(bench: ShardBench) -> None:
    def run(request: ExecutionRequest, emit: Callable[..., None]) -> dict[str, Any]:
        result = answers(request, emit)
        return {**result, "items": result["items"][:2]}

    bench.run = run
    with pytest.raises(ExecutionError, match="the 3 shards gave 6 of 11 rows") as caught:
        await bench()
    assert not caught.value.retryable


async def test_failed_rows_of_all_shards_are_counted_together(bench: ShardBench) -> None:
    def run(request: ExecutionRequest, emit: Callable[..., None]) -> dict[str, Any]:
        path = Path(request.attempt_dir)
        return {**answers(request, emit), "path": str(path)}

    class Failing(MemoryDispatcher):
        async def dispatch(self, job: StageJob, *, on_event: Any) -> ExecutionResult:
            result = await super().dispatch(job, on_event=on_event)
            result.summary["failed_rows"] = 1
            return result

    spec = {"data": {"type": "list", "items": ROWS}, "parallel": {"enabled": True}}
    job = StageJob(
        request=ExecutionRequest("w", "d", "inference", "x:Y", spec, str(bench.root / "w"), str(bench.root / "w/a")),
        executor=ExecutorRef("x:Y"),
        resources=ResourceRequest(),
    )

    async def three(_job: StageJob) -> int:
        return 3

    scope = ShardScope(dispatcher=Failing(run), settings=get_settings(home=bench.root), root=bench.root)
    dispatcher = ShardingDispatcher(scope, capacity=three)
    with pytest.raises(ExecutionError, match=r"3 rows failed in the 3 shards \(inference.max_failed_rows is 0\)"):
        await dispatcher.dispatch(job, on_event=lambda _: None)


async def test_the_export_is_of_the_whole(bench: ShardBench) -> None:
    export = {"postprocess": {"jsonl_export": {"path": "out/rows.jsonl", "fields": {"answer": "output"}}}}
    found = read(await bench(export))
    lines = [json.loads(line) for line in (bench.root / "whole/out/rows.jsonl").read_text().splitlines()]
    assert lines == [{"answer": row.upper()} for row in ROWS]
    assert found["merged"]["jsonl_export"]["record_count"] == 11
    assert all("postprocess" not in r.spec or not r.spec["postprocess"] for r in bench.inner.requests)


async def test_a_row_without_a_required_field_fails_the_whole_in_one_attempt(bench: ShardBench) -> None:
    export = {"path": "x.jsonl", "fields": {"id": "metadata.id"}, "required_fields": ["id"]}
    with pytest.raises(ExecutionError, match="row 0 has no value for the required field 'id'") as caught:
        await bench({"postprocess": {"jsonl_export": export}})
    assert not caught.value.retryable


async def test_an_export_that_cannot_be_meant_is_refused_before_anything_runs(bench: ShardBench) -> None:
    with pytest.raises(ExecutionError, match="leaves the directory of the task"):
        await bench({"postprocess": {"jsonl_export": {"path": "../x"}}})
    assert bench.inner.requests == []


async def test_a_result_that_is_gone_is_named(bench: ShardBench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise OSError("No space left on device")

    monkeypatch.setattr("mloc_prefect.flow.shards.shard_merge.write_result", full)
    with pytest.raises(ArtifactError, match="cannot write the merged result of whole: No space left"):
        await bench()


async def test_different_models_are_a_list(bench: ShardBench) -> None:
    def run(request: ExecutionRequest, emit: Callable[..., None]) -> dict[str, Any]:
        result = answers(request, emit)
        return {**result, "model": f"m{request.spec['shard']['index']}", "usage": None}

    bench.run = run
    merged = read(await bench())["merged"]
    assert merged["model"] == ["m0", "m1", "m2"]
    assert "usage" not in merged


@pytest.mark.parametrize("mixed", [False, True])
async def test_the_choice_of_the_engine_is_told(bench: ShardBench, mixed: bool) -> None:
    def run(request: ExecutionRequest, emit: Callable[..., None]) -> dict[str, Any]:
        first = request.spec["shard"]["index"] == 0 or not mixed
        engine = {"name": "vllm", "why": "a GPU"} if first else {"name": "transformers", "why": "no GPU"}
        return {**answers(request, emit), "engine": engine}

    bench.run = run
    result = await bench()
    vllm, plain = {"name": "vllm", "why": "a GPU"}, {"name": "transformers", "why": "no GPU"}
    assert read(result)["merged"]["engine"] == ([vllm, plain] if mixed else vllm)
    assert result.summary["why"] == ("a GPU; no GPU" if mixed else "a GPU")
