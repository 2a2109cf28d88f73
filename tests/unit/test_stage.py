"""The stage runner: resolution, attempts, reuse and commit, with the dispatcher's twin."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.artifacts.delivery import DeliveryError
from mloc_prefect.errors import ArtifactError, DispatchError, ExecutionError, MlocError
from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionFailure, UserError
from mloc_prefect.orchestrate import commit, stage
from mloc_prefect.orchestrate.dispatch import MemoryDispatcher
from mloc_prefect.orchestrate.fence import NoFence, StaleRunError
from mloc_prefect.orchestrate.lost import WorkerStoppedError
from mloc_prefect.orchestrate.options import RunOptions
from mloc_prefect.orchestrate.stage import RunScope, StageRun, run_stage
from mloc_prefect.settings import get_settings
from tests.support.flows import Recorder, graph

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.execution.protocol import ExecutionRequest
    from mloc_prefect.orchestrate.outcome import StageOutcome


class Told:
    """Keeps what the server would be told."""

    def __init__(self) -> None:
        self.facts: list[tuple[str, int, dict[str, Any]]] = []

    def tell(self, what: str, attempt: int, **facts: Any) -> None:
        self.facts.append((what, attempt, facts))

    @property
    def words(self) -> list[tuple[str, int]]:
        return [(what, attempt) for what, attempt, _ in self.facts]


class Outside:
    """A watch that a test moves."""

    def __init__(self) -> None:
        self.done, self.stopped = asyncio.Event(), asyncio.Event()

    async def completed(self, task_id: str) -> None:
        await self.done.wait()

    async def cancelled(self, task_id: str) -> None:
        await self.stopped.wait()


class Bench:
    """Runs single stages below one results root."""

    def __init__(
        self, root: Path, run: Callable[[ExecutionRequest, Callable[..., None]], Any], **settings: Any
    ) -> None:
        self.dispatcher = MemoryDispatcher(run)
        self.recorder = Recorder()
        self.options = RunOptions(
            settings=get_settings(home=root / "home", results_dir=root / "results", **settings), params={"who": "me"}
        )
        self.fence: Any = NoFence()
        self.ids: dict[str, str] = {}
        self.run_count = 1
        self.begun = 0
        self.stopped: frozenset[int] = frozenset()
        self.teller = Told()
        self.cancel = asyncio.Event()

    async def __call__(self, nodes: dict[str, Any], key: str = "a") -> StageOutcome:
        plan = graph(nodes)
        scope = RunScope(
            options=self.options,
            dispatcher=self.dispatcher,
            observer=self.recorder,
            fence=self.fence,
            run_count=self.run_count,
            task_ids={s.key: self.ids.get(s.key, f"id-{s.key}") for s in plan.stages},
            stopped=self.stopped,
        )
        run = StageRun(log=logging.getLogger("test"), teller=self.teller, cancel=self.cancel, begun=self.begun)
        return await run_stage(plan.stage(key), scope, run)

    @property
    def attempts(self) -> list[str]:
        return [Path(r.attempt_dir).name for r in self.dispatcher.requests]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(stage, "_sleep", sleep)
    return waited


def echo(request: ExecutionRequest, _emit: Callable[..., None]) -> dict[str, Any]:
    return {"ok": True, "echo": request.spec}


def failing(times: int, error: Callable[[], Exception]) -> Callable[..., dict[str, Any]]:
    left = [times]

    def run(request: ExecutionRequest, emit: Callable[..., None]) -> dict[str, Any]:
        if left[0]:
            left[0] -= 1
            raise error()
        return echo(request, emit)

    return run


def killed() -> ExecutionError:
    failure = ExecutionFailure("killed by SIGKILL", kind="killed", signal="SIGKILL", log_tail="last words")
    return ExecutionError(failure.message, failure=failure)


async def test_a_stage_leaves_result_manifest_and_log(tmp_path: Path) -> None:
    bench = Bench(tmp_path, echo)
    outcome = await bench({"a": ([], {"output": {"artifacts": ["model"]}})})
    directory = tmp_path / "results" / "id-a"
    assert outcome.result_path == str(directory / "responses.json")
    manifest = json.loads((directory / "manifest.json").read_text())
    rows = {e["path"]: e for e in manifest["entries"]}
    assert (manifest["task_id"], manifest["status"], manifest["attempt"]) == ("id-a", "DONE", 1)
    assert rows["responses.json"]["size"] == (directory / "responses.json").stat().st_size
    assert (rows["model"]["required"], rows["model"]["status"]) == (True, "missing")
    assert "attempt 1 starts" in (directory / "logs" / "stage.log").read_text()
    assert (directory / "attempts" / "1-1" / "result.json").is_file()


async def test_references_read_results_ids_and_parameters(tmp_path: Path) -> None:
    bench = Bench(tmp_path, echo)
    nodes = {
        "a": ([], {"list": [1, {"x": "ü"}]}),
        "b": (
            ["a"],
            {"whole": "${a.result.echo.list}", "text": "${param.who} ${a.task_id} ${a.result.echo.list[1].x}"},
        ),
    }
    await bench(nodes, "a")
    await bench(nodes, "b")
    spec = bench.dispatcher.requests[-1].spec
    assert (spec["whole"], spec["text"]) == ([1, {"x": "ü"}], "me id-a ü")


async def test_a_value_that_is_missing_in_a_required_place_fails_without_a_retry(
    tmp_path: Path, waits: list[float]
) -> None:
    bench = Bench(tmp_path, echo)
    load = {"type": "http", "url": "${a.result.nothing.url}"}
    nodes = {"a": ([], {}), "b": (["a"], {"taskType": "sft", "checkpoint": {"load": load}, "data": {"prompts": ["x"]}})}
    await bench(nodes, "a")
    with pytest.raises(ExecutionError, match=r"nothing") as caught:
        await bench(nodes, "b")
    assert (caught.value.retryable, waits) == (False, [])


async def test_a_spec_is_validated_again_once_it_is_resolved(tmp_path: Path) -> None:
    bench = Bench(tmp_path, echo)
    nodes = {"a": ([], {"word": "soon"}), "b": (["a"], {"timeoutSec": "${a.result.echo.word}"})}
    await bench(nodes, "a")
    with pytest.raises(ExecutionError, match=r"invalid once its references are filled in: spec\.timeoutSec"):
        await bench(nodes, "b")


async def test_retries_wait_ten_twenty_forty_seconds_then_the_stage_fails(tmp_path: Path, waits: list[float]) -> None:
    bench = Bench(tmp_path, failing(9, killed))
    with pytest.raises(ExecutionError, match="killed by SIGKILL"):
        await bench({"a": ([], {})})
    assert waits == [10.0, 20.0, 40.0]
    assert bench.attempts == ["1-1", "1-2", "1-3", "1-4"]
    assert next(c for c in bench.recorder.calls if c[0] == "retry") == ("retry", "a", 1, "killed by SIGKILL", 10.0)
    log = (tmp_path / "results" / "id-a" / "logs" / "stage.log").read_text()
    assert "next attempt in 40 s" in log
    assert "last words" in log


async def test_the_delay_has_an_upper_bound(tmp_path: Path, waits: list[float]) -> None:
    await Bench(tmp_path, failing(3, killed), retry_max_delay=15)({"a": ([], {})})
    assert waits == [10.0, 15, 15]


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
async def test_only_what_may_go_better_is_retried(
    tmp_path: Path, waits: list[float], error: Callable[[], Exception], tries: int
) -> None:
    bench = Bench(tmp_path, failing(9, error), max_retries=2)
    with pytest.raises(MlocError):
        await bench({"a": ([], {})})
    assert (len(bench.attempts), len(waits)) == (tries, tries - 1)


async def test_a_later_start_of_the_run_has_its_own_attempts_and_one_retry_less(
    tmp_path: Path, waits: list[float]
) -> None:
    bench = Bench(tmp_path, failing(9, killed), max_retries=2)
    for bench.run_count in (1, 2):
        with pytest.raises(ExecutionError):
            await bench({"a": ([], {})})
    assert bench.attempts == ["1-1", "1-2", "1-3", "2-1", "2-2"]
    bench.run_count = 9
    with pytest.raises(ExecutionError):
        await bench({"a": ([], {})})
    assert bench.attempts[5:] == ["9-1"], "one attempt is left, however often the run was started"


async def test_starts_that_ended_by_a_stop_cost_no_retry(tmp_path: Path, waits: list[float]) -> None:
    bench = Bench(tmp_path, failing(9, killed), max_retries=2)
    for start in range(1, 6):
        (tmp_path / "results" / "id-a" / "attempts" / f"{start}-1").mkdir(parents=True)
    bench.run_count, bench.stopped = 6, frozenset({1, 2, 3, 5})
    with pytest.raises(ExecutionError):
        await bench({"a": ([], {})})
    assert bench.attempts == ["6-1", "6-2"], "only the fourth start was lost"


async def test_an_attempt_whose_worker_was_stopped_costs_no_retry(tmp_path: Path, waits: list[float]) -> None:
    bench = Bench(tmp_path, failing(5, lambda: WorkerStoppedError("w was stopped", "w")), max_retries=1)
    assert (await bench({"a": ([], {})})).status == "DONE"
    assert (len(bench.attempts), waits) == (6, [])
    failed = [facts for what, _, facts in bench.teller.facts if what == "failed"]
    assert [(f["error"], f["final"]) for f in failed] == [("w was stopped", False)] * 5


async def test_a_finished_stage_is_not_run_again_for_the_same_spec_only(tmp_path: Path) -> None:
    bench = Bench(tmp_path, echo)
    first, second = await bench({"a": ([], {"x": 1})}), await bench({"a": ([], {"x": 1})})
    assert (first.reused, second.reused, len(bench.attempts)) == (False, True, 1)
    third = await bench({"a": ([], {"x": 2})})
    assert (third.reused, bench.attempts) == (False, ["1-1", "1-2"])
    assert json.loads(Path(third.result_path or "").read_text())["echo"]["x"] == 2


async def test_a_result_lost_between_commit_and_publishing_is_restored(tmp_path: Path) -> None:
    bench = Bench(tmp_path, echo)
    path = Path((await bench({"a": ([], {})})).result_path or "")
    content = path.read_bytes()
    path.unlink()
    assert (await bench({"a": ([], {})})).reused
    assert path.read_bytes() == content
    path.write_bytes(content.replace(b"true", b"null"))
    assert (await bench({"a": ([], {})})).reused
    assert path.read_bytes() == content, "an older result of the same length was there"
    path.write_text("cut")
    (path.parent / "attempts" / "1-1" / "result.json").unlink()
    assert not (await bench({"a": ([], {})})).reused, "what cannot be restored is computed again"


async def test_of_two_processes_the_one_that_commits_first_counts(tmp_path: Path) -> None:
    other = Bench(tmp_path, echo)

    async def slow(request: ExecutionRequest, _emit: Callable[..., None]) -> dict[str, Any]:
        await other({"a": ([], {})})
        return {"late": True}

    outcome = await Bench(tmp_path, slow)({"a": ([], {})})
    assert json.loads(Path(outcome.result_path or "").read_text()) == {
        "ok": True,
        "echo": other.dispatcher.requests[0].spec,
    }


async def test_a_start_that_is_over_commits_nothing(tmp_path: Path, waits: list[float]) -> None:
    class Over:
        async def check(self) -> None:
            raise StaleRunError("the run was started again")

    bench = Bench(tmp_path, echo)
    bench.fence = Over()
    with pytest.raises(StaleRunError):
        await bench({"a": ([], {})})
    assert waits == []
    assert not (tmp_path / "results" / "id-a" / "manifest.json").exists()
    assert not (tmp_path / "results" / "id-a" / "responses.json").exists()


async def test_a_failed_delivery_is_repeated_without_the_work(
    tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [DeliveryError("busy", retryable=True), None]
    sent: list[Any] = []

    async def deliver(destination: Any, *, result: Path, **_: Any) -> None:
        sent.append(json.loads(result.read_text()))
        answer = answers.pop(0)
        if answer:
            assert (tmp_path / "results" / "id-a" / "responses.json").is_file(), "written before it is sent"
            raise answer

    monkeypatch.setattr(commit, "deliver", deliver)
    bench = Bench(tmp_path, echo)
    assert (await bench({"a": ([], {"output": {"destination": {"type": "http", "url": "http://127.0.0.1/x"}}})})).ok
    assert (len(sent), len(bench.attempts), len(waits)) == (2, 1, 1)
    assert sent[0] == sent[1]


async def test_a_forbidden_destination_is_refused_before_the_work(tmp_path: Path) -> None:
    bench = Bench(tmp_path, echo)
    with pytest.raises(DeliveryError, match="is not allowed"):
        await bench({"a": ([], {"output": {"destination": {"type": "http", "url": "http://example.org/x"}}})})
    with pytest.raises(ArtifactError, match="leaves the results root"):
        await bench({"a": ([], {"output": {"destination": {"path": "../out"}}})})
    assert bench.attempts == []


async def test_results_go_to_the_destination_path(tmp_path: Path) -> None:
    outcome = await Bench(tmp_path, echo)({"a": ([], {"output": {"destination": {"path": "mine"}}})})
    assert outcome.result_path == str(tmp_path / "results" / "mine" / "id-a" / "responses.json")
    assert (tmp_path / "results" / "id-a" / "responses.json").is_file()


async def test_events_reach_observer_and_log(tmp_path: Path) -> None:
    def run(request: ExecutionRequest, emit: Callable[..., None]) -> dict[str, Any]:
        for done in range(1, 6):
            emit("progress", done=done, total=5)
        emit("log", message="two\nlines", level="info")
        emit("phase", text="loading", fraction=0.4)
        return echo(request, emit)

    seen: list[ExecutionEvent] = []
    bench = Bench(tmp_path, run)
    bench.recorder.on_progress = seen.append
    await bench({"a": ([], {})})
    text = (tmp_path / "results" / "id-a" / "logs" / "stage.log").read_text()
    assert seen == [1, 2, 3, 4, 5]
    assert ("progress: 1/5" in text, "progress: 3/5" in text, "progress: 5/5" in text) == (True, False, True)
    assert "info: two\n    lines" in text
    assert "phase: loading 40 %" in text


async def test_the_log_of_the_run_has_what_the_executor_says_but_not_without_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(request: ExecutionRequest, emit: Callable[..., None]) -> dict[str, Any]:
        emit("log", message="engine: vllm (the stage asks for a GPU)", level="info")
        for row in range(300):
            emit("log", message=f"row {row}: too long", level="warning")
        return echo(request, emit)

    with caplog.at_level(logging.INFO, "test"):
        await Bench(tmp_path, run)({"a": ([], {})})
    rows = [r for r in caplog.records if r.message.startswith("row ")]
    assert ("engine: vllm (the stage asks for a GPU)", logging.INFO) in [(r.message, r.levelno) for r in caplog.records]
    assert (len(rows), {r.levelno for r in rows}) == (199, {logging.WARNING})
    assert "further lines of the executor are in logs/stage.log only" in caplog.text
    assert "row 299" in (tmp_path / "results" / "id-a" / "logs" / "stage.log").read_text()


async def test_the_executor_is_told_which_hosts_its_data_may_come_from(tmp_path: Path) -> None:
    bench = Bench(tmp_path, echo, allowed_hosts="data.example", base_url="http://head.example:8000")
    await bench({"a": ([], {})})
    (request,) = bench.dispatcher.requests
    assert request.settings["allowed_hosts"] == "data.example,head.example"
    assert request.settings["loopback"] is True


async def test_references_read_tasks_of_other_submissions_by_their_name(tmp_path: Path) -> None:
    other = "6f8b2a52-3df0-4d2b-8c61-0a6a0a3f3b11"
    bench = Bench(tmp_path, echo)
    bench.ids = {"first": other}
    await bench({"first": ([], {"x": [7]})}, key="first")
    bench.ids = {}
    nodes = {"a": ([other], {"n": "${first.result.echo.x[0]}", "id": "${first.task_id}", "no": "<${second.result.x}>"})}
    await bench(nodes)
    spec = bench.dispatcher.requests[-1].spec
    assert (spec["n"], spec["id"], spec["no"]) == (7, other, "<>")


async def test_expected_artifacts_of_impossible_names_are_missing_ones(tmp_path: Path) -> None:
    names = ["a\0b", "n" * 5000, "../../x", "/etc/hostname"]
    outcome = await Bench(tmp_path, echo)({"a": ([], {"output": {"artifacts": names}})})
    manifest = json.loads((Path(outcome.result_path or "").parent / "manifest.json").read_text())
    found = [e["status"] for e in manifest["entries"] if e["path"] in {n.strip("/") for n in names}]
    assert found == ["missing"] * 4


# --- what others are told, and what others decide ---------------------------------------------------------------------


async def test_attempts_are_told_in_order_and_numbered_over_all_starts(tmp_path: Path, waits: list[float]) -> None:
    bench = Bench(tmp_path, failing(2, killed), worker_id="w-1", max_retries=2)
    await bench({"a": ([], {})})
    at = {"worker": "w-1", "protocol": "ours"}
    tried = ["placed", "started", "failed"]
    assert bench.teller.words == [*((w, 1) for w in tried), *((w, 2) for w in tried), ("placed", 3), ("started", 3)]
    assert bench.teller.facts[0] == ("placed", 1, {**at, "flow_run": None})
    what, _, failed = bench.teller.facts[2]
    assert (what, failed["error"], failed["final"]) == ("failed", "killed by SIGKILL", False)
    assert failed["next_retry_at"] > "2026"
    later = Bench(tmp_path, failing(9, killed), max_retries=1)
    later.run_count = 2
    with pytest.raises(ExecutionError):
        await later({"a": ([], {"other": 1})})
    assert later.teller.words == [(w, 4) for w in tried], "after three of the first start no retry is left"
    assert later.teller.facts[-1][2]["final"] is True


async def test_labels_know_of_attempts_that_left_no_directory(tmp_path: Path) -> None:
    bench = Bench(tmp_path, echo)
    bench.begun = 4
    await bench({"a": ([], {})})
    assert bench.teller.words == [("placed", 5), ("started", 5)]


async def test_the_dispatcher_says_where_an_attempt_waits_and_runs(tmp_path: Path) -> None:
    def run(request: ExecutionRequest, emit: Callable[..., None]) -> dict[str, Any]:
        emit("waiting", reason="no GPU is free")
        emit("placed", worker="w-9", protocol="original")
        emit("progress", done=1, total=1)
        return echo(request, emit)

    bench = Bench(tmp_path, run)
    await bench({"a": ([], {})})
    assert bench.teller.facts == [
        ("waiting", 1, {"reason": "no GPU is free"}),
        ("placed", 1, {"worker": "w-9", "protocol": "original", "flow_run": None}),
    ], "a worker of the original protocol tells by itself that it has started"


async def forever(request: ExecutionRequest, emit: Callable[..., None]) -> dict[str, Any]:
    emit("progress", done=0, total=1)
    await asyncio.Event().wait()
    return {}


async def until(fact: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not fact():
            await asyncio.sleep(0)
            await asyncio.to_thread(lambda: None)


async def test_a_result_from_outside_ends_the_running_attempt(tmp_path: Path) -> None:
    bench, watch = Bench(tmp_path, forever), Outside()
    bench.options = replace(bench.options, watch=watch)
    run = asyncio.ensure_future(bench({"a": ([], {})}))
    await until(lambda: bench.teller.words)
    path = tmp_path / "results" / "id-a" / "responses.json"
    path.write_text('{"task_id": "id-a", "result": {"by": "somebody"}}')
    watch.done.set()
    outcome = await run
    assert (outcome.status, outcome.result_path) == ("DONE", str(path))
    manifest = json.loads((path.parent / "manifest.json").read_text())
    assert (manifest["status"], manifest["engine"]) == ("DONE", "outside")
    assert (await Bench(tmp_path, forever)({"a": ([], {})})).reused
    nodes = {"a": ([], {}), "b": (["a"], {"x": "${a.result.by}"})}
    later = Bench(tmp_path, echo)
    await later(nodes, "b")
    assert later.dispatcher.requests[0].spec["x"] == "somebody"


async def test_a_result_from_outside_ends_the_wait_for_a_retry(tmp_path: Path) -> None:
    bench, watch = Bench(tmp_path, failing(9, killed), retry_base_delay=1000), Outside()
    bench.options = replace(bench.options, watch=watch)
    run = asyncio.ensure_future(bench({"a": ([], {})}))
    await until(lambda: ("failed", 1) in bench.teller.words)
    (tmp_path / "results" / "id-a" / "responses.json").write_text("{}")
    watch.done.set()
    assert (await run).ok
    assert len(bench.attempts) == 1


async def test_a_completion_without_a_result_is_an_error(tmp_path: Path) -> None:
    bench, watch = Bench(tmp_path, forever), Outside()
    bench.options = replace(bench.options, watch=watch)
    watch.done.set()
    with pytest.raises(ArtifactError, match="share one results root"):
        await bench({"a": ([], {})})


@pytest.mark.parametrize("how", ["record", "board"])
async def test_a_cancelled_task_ends_alone(tmp_path: Path, how: str) -> None:
    bench, watch = Bench(tmp_path, forever), Outside()
    bench.options = replace(bench.options, watch=watch)
    run = asyncio.ensure_future(bench({"a": ([], {})}))
    await until(lambda: bench.teller.words)
    (watch.stopped if how == "record" else bench.cancel).set()
    outcome = await run
    assert (outcome.status, outcome.error) == ("CANCELLED", "cancelled")
    assert not (tmp_path / "results" / "id-a" / "manifest.json").exists()


async def test_an_envelope_of_our_own_endpoint_is_what_the_manifest_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results" / "id-a" / "responses.json"

    async def deliver(destination: Any, *, stage_run: str | None, **_: Any) -> None:
        path.write_text('{"task_id": "id-a", "result": {}}')

    monkeypatch.setattr(commit, "deliver", deliver)
    nodes = {"a": ([], {"output": {"destination": {"type": "http", "url": "http://127.0.0.1/x"}}})}
    assert (await Bench(tmp_path, echo)(nodes)).ok
    assert (await Bench(tmp_path, forever)(nodes)).reused
    assert path.read_text() == '{"task_id": "id-a", "result": {}}'


def cancelled() -> ExecutionError:
    failure = ExecutionFailure("cancelled", kind="cancelled")
    return ExecutionError(failure.message, retryable=False, failure=failure)


async def test_an_attempt_that_is_cancelled_where_it_runs_is_no_failure(tmp_path: Path, waits: list[float]) -> None:
    """As when the run of the stage itself is cancelled."""
    bench = Bench(tmp_path, failing(1, cancelled))
    outcome = await bench({"a": ([], {})})
    assert (outcome.status, outcome.error) == ("CANCELLED", "cancelled")
    assert bench.attempts == ["1-1"]
    assert "failed" not in dict(bench.teller.words)
    log = (tmp_path / "results" / "id-a" / "logs" / "stage.log").read_text()
    assert "failed" not in log
    assert log.rstrip().endswith("cancelled")
