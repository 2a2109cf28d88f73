"""Divided attempts: shards of their own, retried alone, merged in row order, never done twice."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.errors import ArtifactError, ExecutionError
from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionFailure, ExecutionRequest, UserError
from mloc_prefect.executors.own_rows import own_rows
from mloc_prefect.orchestrate import shards
from mloc_prefect.orchestrate.dispatch import MemoryDispatcher, StageJob
from mloc_prefect.orchestrate.lost import WorkerStoppedError
from mloc_prefect.orchestrate.outcome import was_cancelled
from mloc_prefect.orchestrate.shard_progress import ShardProgress
from mloc_prefect.orchestrate.shards import ShardingDispatcher
from mloc_prefect.plan.model import ResourceRequest
from mloc_prefect.settings import get_settings
from mloc_prefect.tasks.base import ExecutorRef

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.execution.protocol import ExecutionResult

ROWS = [f"row {i}" for i in range(11)]
DATASET = [f"line {i}" for i in range(7)]


def answers(request: ExecutionRequest, emit: Callable[..., None]) -> dict[str, Any]:
    """Answer each row with its capitals."""
    data = request.spec["data"]
    rows, first = own_rows(data.get("items", DATASET), request.spec)
    emit("progress", done=len(rows), total=len(rows), tokens_out=len(rows))
    items = [{"index": first + i, "output": row.upper()} for i, row in enumerate(rows)]
    usage = {"prompt_tokens": len(rows), "latency_sec": 0.25}
    return {"ok": True, "model": "m", "items": items, "usage": usage}


@dataclass
class Bench:
    """Divides tasks below one results root."""

    root: Path
    run: Callable[..., Any] = answers
    capacity: int = 3
    events: list[ExecutionEvent] = field(default_factory=list)
    run_count: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    stopped: frozenset[int] = frozenset()

    async def __call__(self, spec: dict[str, Any] | None = None, task_type: str = "inference") -> ExecutionResult:
        self.inner = MemoryDispatcher(self.run)
        settings = get_settings(home=self.root / "home", **self.settings)

        async def capacity(_job: StageJob) -> int:
            return self.capacity

        directory = self.root / "whole"
        attempt = directory / "attempts" / f"{self.run_count}-{len(list(directory.glob('attempts/*-*'))) + 1}"
        attempt.mkdir(parents=True)
        request = ExecutionRequest(
            "whole",
            "demo",
            task_type,
            "x:Y",
            {"parallel": {"enabled": True}, "data": {"type": "list", "items": ROWS}, **(spec or {})},
            str(directory),
            str(attempt),
            run_count=self.run_count,
        )
        job = StageJob(request=request, executor=ExecutorRef("x:Y"), resources=ResourceRequest(), holder="demo")
        dispatcher = ShardingDispatcher(
            self.inner, settings=settings, root=self.root, capacity=capacity, stopped=self.stopped
        )
        return await dispatcher.dispatch(job, on_event=self.events.append)

    def told(self, what: str) -> list[dict[str, Any]]:
        return [e.data for e in self.events if e.kind == "shard" and e.data["step"] == what]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    async def at_once(_seconds: float) -> None: ...

    monkeypatch.setattr(shards, "_sleep", at_once)
    return Bench(tmp_path)


def read(result: ExecutionResult) -> dict[str, Any]:
    found = json.loads(Path(result.path).read_text())
    return found["result"] if result.envelope else found


async def test_the_merged_result_has_the_documented_shape(bench: Bench) -> None:
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


async def test_the_setting_bounds_the_shards_of_a_task_that_names_no_number(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_AUTO_SHARDS", "2")
    bench.capacity = 5
    assert len(read(await bench())["shards"]) == 2
    bench.root /= "more"
    assert len(read(await bench({"parallel": {"enabled": True, "max_shards": 4}}))["shards"]) == 4


@pytest.mark.parametrize("count", [1, 2, 3, 5, 11, 40])
@pytest.mark.parametrize("data", [{"type": "list", "items": ROWS}, {"type": "dataset", "url": "x"}])
async def test_any_number_of_shards_gives_the_rows_of_the_whole(bench: Bench, data: dict[str, Any], count: int) -> None:
    bench.capacity = count
    spec = {"data": data, "parallel": {"enabled": True, "max_shards": 99}}
    found = read(await bench(spec))
    rows = data.get("items", DATASET)
    whole = found["merged"] if count > 1 else found
    assert whole["items"] == [{"index": i, "output": row.upper()} for i, row in enumerate(rows)]


async def test_each_shard_has_a_task_of_its_own(bench: Bench) -> None:
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
async def test_what_cannot_be_divided_is_passed_on_whole(bench: Bench, spec: dict[str, Any], task_type: str) -> None:
    await bench(spec, task_type)
    assert [r.task_id for r in bench.inner.requests] == ["whole"]
    assert "shard" not in bench.inner.requests[0].spec


async def test_progress_is_that_of_the_whole(bench: Bench) -> None:
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


async def test_a_failed_shard_is_retried_alone(bench: Bench) -> None:
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
async def test_a_shard_out_of_retries_fails_the_attempt_for_good(bench: Bench, retryable: bool, attempts: int) -> None:
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


async def test_a_shard_that_is_cancelled_where_it_runs_cancels_the_whole(bench: Bench) -> None:
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


async def test_stops_of_workers_cost_a_shard_no_retry(bench: Bench) -> None:
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


async def test_finished_shards_are_not_repeated_and_the_division_stays(bench: Bench) -> None:
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


async def test_another_spec_is_divided_anew(bench: Bench) -> None:
    await bench()
    bench.capacity = 2
    found = read(await bench({"data": {"type": "list", "items": ROWS[:5]}}))
    assert [len(e["result"]["items"]) for e in found["shards"]] == [3, 2]


async def test_a_task_that_was_begun_in_one_piece_stays_so(bench: Bench) -> None:
    attempt = bench.root / "whole" / "attempts" / "1-1"
    attempt.mkdir(parents=True)
    (attempt / "items.jsonl").write_text("")
    await bench()
    assert [r.task_id for r in bench.inner.requests] == ["whole"]


async def test_rows_that_are_missing_are_an_error_and_no_result(bench: Bench) -> None:
    def run(request: ExecutionRequest, emit: Callable[..., None]) -> dict[str, Any]:
        result = answers(request, emit)
        return {**result, "items": result["items"][:2]}

    bench.run = run
    with pytest.raises(ExecutionError, match="the 3 shards gave 6 of 11 rows") as caught:
        await bench()
    assert not caught.value.retryable


async def test_failed_rows_of_all_shards_are_counted_together(bench: Bench) -> None:
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

    dispatcher = ShardingDispatcher(
        Failing(run), settings=get_settings(home=bench.root), root=bench.root, capacity=three
    )
    with pytest.raises(ExecutionError, match=r"3 rows failed in the 3 shards \(inference.max_failed_rows is 0\)"):
        await dispatcher.dispatch(job, on_event=lambda _: None)


async def test_the_export_is_of_the_whole(bench: Bench) -> None:
    export = {"postprocess": {"jsonl_export": {"path": "out/rows.jsonl", "fields": {"answer": "output"}}}}
    found = read(await bench(export))
    lines = [json.loads(line) for line in (bench.root / "whole/out/rows.jsonl").read_text().splitlines()]
    assert lines == [{"answer": row.upper()} for row in ROWS]
    assert found["merged"]["jsonl_export"]["record_count"] == 11
    assert all("postprocess" not in r.spec or not r.spec["postprocess"] for r in bench.inner.requests)


async def test_an_export_that_cannot_be_meant_is_refused_before_anything_runs(bench: Bench) -> None:
    with pytest.raises(ExecutionError, match="leaves the directory of the task"):
        await bench({"postprocess": {"jsonl_export": {"path": "../x"}}})
    assert bench.inner.requests == []


async def test_a_result_that_is_gone_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise OSError("No space left on device")

    monkeypatch.setattr("mloc_prefect.orchestrate.shard_merge.write_result", full)
    with pytest.raises(ArtifactError, match="cannot write the merged result of whole: No space left"):
        await bench()


async def test_different_models_are_a_list(bench: Bench) -> None:
    def run(request: ExecutionRequest, emit: Callable[..., None]) -> dict[str, Any]:
        result = answers(request, emit)
        return {**result, "model": f"m{request.spec['shard']['index']}", "usage": None}

    bench.run = run
    merged = read(await bench())["merged"]
    assert merged["model"] == ["m0", "m1", "m2"]
    assert "usage" not in merged


@pytest.mark.parametrize("mixed", [False, True])
async def test_the_choice_of_the_engine_is_told(bench: Bench, mixed: bool) -> None:
    def run(request: ExecutionRequest, emit: Callable[..., None]) -> dict[str, Any]:
        first = request.spec["shard"]["index"] == 0 or not mixed
        engine = {"name": "vllm", "why": "a GPU"} if first else {"name": "transformers", "why": "no GPU"}
        return {**answers(request, emit), "engine": engine}

    bench.run = run
    result = await bench()
    vllm, plain = {"name": "vllm", "why": "a GPU"}, {"name": "transformers", "why": "no GPU"}
    assert read(result)["merged"]["engine"] == ([vllm, plain] if mixed else vllm)
    assert result.summary["why"] == ("a GPU; no GPU" if mixed else "a GPU")


async def test_what_shards_say_is_passed_on_under_their_names(bench: Bench) -> None:
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
