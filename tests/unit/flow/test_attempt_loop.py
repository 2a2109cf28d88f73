"""The attempts at a stage: retries, numbers, reports, and what a later start of the run has left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.artifacts.transfer.outgoing import DeliveryError
from mloc_prefect.errors import ArtifactError, DispatchError, ExecutionError, MlocError
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.flow import commit
from mloc_prefect.flow.fencing import StaleRunError
from mloc_prefect.flow.worker_loss import WorkerStoppedError
from tests.support.stages import StageBench, cancelled, echo, failing, killed

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.execution.protocol import ExecutionRequest


async def test_retries_wait_ten_twenty_forty_seconds_then_the_stage_fails(tmp_path: Path) -> None:
    bench = StageBench(tmp_path, failing(9, killed))
    with pytest.raises(ExecutionError, match="killed by SIGKILL"):
        await bench({"a": ([], {})})
    assert bench.waits == [10.0, 20.0, 40.0]
    assert bench.attempts == ["1-1", "1-2", "1-3", "1-4"]
    assert next(c for c in bench.recorder.calls if c[0] == "retry") == ("retry", "a", 1, "killed by SIGKILL", 10.0)
    log = (tmp_path / "results" / "id-a" / "logs" / "stage.log").read_text()
    assert "next attempt in 40 s" in log
    assert "last words" in log


async def test_the_delay_has_an_upper_bound(tmp_path: Path) -> None:
    bench = StageBench(tmp_path, failing(3, killed), retry_max_delay=15)
    await bench({"a": ([], {})})
    assert bench.waits == [10.0, 15, 15]


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (lambda: UserError("no such column"), 1),
        (lambda: ExecutionError("missing", retryable=False), 1),
        (lambda: ArtifactError("disk full"), 1),
        (lambda: DispatchError("no host"), 3),
        (killed, 3),
    ],
)
async def test_only_what_may_go_better_is_retried(tmp_path: Path, error: Callable[[], Exception], tries: int) -> None:
    bench = StageBench(tmp_path, failing(9, error), max_retries=2)
    with pytest.raises(MlocError):
        await bench({"a": ([], {})})
    assert (len(bench.attempts), len(bench.waits)) == (tries, tries - 1)


async def test_a_later_start_of_the_run_has_its_own_attempts_and_one_retry_less(
    tmp_path: Path,
) -> None:
    bench = StageBench(tmp_path, failing(9, killed), max_retries=2)
    for bench.run_count in (1, 2):
        with pytest.raises(ExecutionError):
            await bench({"a": ([], {})})
    assert bench.attempts == ["1-1", "1-2", "1-3", "2-1", "2-2"]
    bench.run_count = 9
    with pytest.raises(ExecutionError):
        await bench({"a": ([], {})})
    assert bench.attempts[5:] == ["9-1"], "one attempt is left, however often the run was started"


async def test_starts_that_ended_by_a_stop_cost_no_retry(tmp_path: Path) -> None:
    bench = StageBench(tmp_path, failing(9, killed), max_retries=2)
    for start in range(1, 6):
        (tmp_path / "results" / "id-a" / "attempts" / f"{start}-1").mkdir(parents=True)
    bench.run_count, bench.stopped = 6, frozenset({1, 2, 3, 5})
    with pytest.raises(ExecutionError):
        await bench({"a": ([], {})})
    assert bench.attempts == ["6-1", "6-2"], "only the fourth start was lost"


async def test_an_attempt_whose_worker_was_stopped_costs_no_retry(tmp_path: Path) -> None:
    bench = StageBench(tmp_path, failing(5, lambda: WorkerStoppedError("w was stopped", "w")), max_retries=1)
    assert (await bench({"a": ([], {})})).status == "DONE"
    assert (len(bench.attempts), bench.waits) == (6, [])
    failed = [facts for what, _, facts in bench.events.facts if what == "failed"]
    assert [(f["error"], f["final"]) for f in failed] == [("w was stopped", False)] * 5


async def test_a_start_that_is_over_commits_nothing(tmp_path: Path) -> None:
    class Over:
        async def check(self) -> None:
            raise StaleRunError("the run was started again")

    bench = StageBench(tmp_path, echo)
    bench.fence = Over()
    with pytest.raises(StaleRunError):
        await bench({"a": ([], {})})
    assert bench.waits == []
    assert not (tmp_path / "results" / "id-a" / "manifest.json").exists()
    assert not (tmp_path / "results" / "id-a" / "responses.json").exists()


@pytest.mark.parametrize(("asked", "waits"), [(0.0, 10.0), (25.0, 25.0), (86400.0, 300.0)])
async def test_a_destination_that_is_busy_says_when_it_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: float, waits: float
) -> None:
    answers = [DeliveryError("busy", retryable=True, asked_to_wait=asked)]

    async def deliver(*_: Any, **__: Any) -> None:
        if answers:
            raise answers.pop()

    monkeypatch.setattr(commit, "deliver", deliver)
    bench = StageBench(tmp_path, echo)
    destination = {"type": "http", "url": "http://127.0.0.1:8080/x"}
    assert (await bench({"a": ([], {"output": {"destination": destination}})})).status == "DONE"
    assert bench.waits == [waits]


async def test_a_failed_delivery_is_repeated_without_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [DeliveryError("busy", retryable=True), None]
    sent: list[Any] = []

    async def deliver(destination: Any, *, result: Path, **_: Any) -> None:
        sent.append(json.loads(result.read_text()))
        answer = answers.pop(0)
        if answer:
            assert (tmp_path / "results" / "id-a" / "responses.json").is_file(), "written before it is sent"
            raise answer

    monkeypatch.setattr(commit, "deliver", deliver)
    bench = StageBench(tmp_path, echo)
    assert (
        await bench({"a": ([], {"output": {"destination": {"type": "http", "url": "http://127.0.0.1:8080/x"}}})})
    ).ok
    assert (len(sent), len(bench.attempts), len(bench.waits)) == (2, 1, 1)
    assert sent[0] == sent[1]


async def test_attempts_are_told_in_order_and_numbered_over_all_starts(tmp_path: Path) -> None:
    bench = StageBench(tmp_path, failing(2, killed), worker_id="w-1", max_retries=2)
    await bench({"a": ([], {})})
    at = {"worker": "w-1", "protocol": "ours"}
    tried = ["placed", "started", "failed"]
    assert bench.events.words == [*((w, 1) for w in tried), *((w, 2) for w in tried), ("placed", 3), ("started", 3)]
    assert bench.events.facts[0] == ("placed", 1, {**at, "flow_run": None})
    what, _, failed = bench.events.facts[2]
    assert (what, failed["error"], failed["final"]) == ("failed", "killed by SIGKILL", False)
    assert failed["next_retry_at"] > "2026"
    later = StageBench(tmp_path, failing(9, killed), max_retries=1)
    later.run_count = 2
    with pytest.raises(ExecutionError):
        await later({"a": ([], {"other": 1})})
    assert later.events.words == [(w, 4) for w in tried], "after three of the first start no retry is left"
    assert later.events.facts[-1][2]["final"] is True


async def test_labels_know_of_attempts_that_left_no_directory(tmp_path: Path) -> None:
    bench = StageBench(tmp_path, echo)
    bench.begun = 4
    await bench({"a": ([], {})})
    assert bench.events.words == [("placed", 5), ("started", 5)]


async def test_the_dispatcher_says_where_an_attempt_waits_and_runs(tmp_path: Path) -> None:
    def run(request: ExecutionRequest, emit: Callable[..., None]) -> dict[str, Any]:
        emit("waiting", reason="no GPU is free")
        emit("placed", worker="w-9", protocol="original")
        emit("progress", done=1, total=1)
        return echo(request, emit)

    bench = StageBench(tmp_path, run)
    await bench({"a": ([], {})})
    assert bench.events.facts == [
        ("waiting", 1, {"reason": "no GPU is free"}),
        ("placed", 1, {"worker": "w-9", "protocol": "original", "flow_run": None}),
    ], "a worker of the original protocol tells by itself that it has started"


async def test_an_attempt_that_is_cancelled_where_it_runs_is_no_failure(tmp_path: Path) -> None:
    """As when the run of the stage itself is cancelled."""
    bench = StageBench(tmp_path, failing(1, cancelled))
    outcome = await bench({"a": ([], {})})
    assert (outcome.status, outcome.error) == ("CANCELLED", "cancelled")
    assert bench.attempts == ["1-1"]
    assert "failed" not in dict(bench.events.words)
    log = (tmp_path / "results" / "id-a" / "logs" / "stage.log").read_text()
    assert "failed" not in log
    assert log.rstrip().endswith("cancelled")
