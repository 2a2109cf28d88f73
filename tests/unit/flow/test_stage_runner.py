"""The stage runner: resolution, reuse, commit, and ends from outside."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.errors import ArtifactError, ExecutionError
from mloc_prefect.execution.protocol import ExecutionEvent
from mloc_prefect.flow import commit
from tests.support.stages import Outside, StageBench, echo, failing, forever, killed, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.execution.protocol import ExecutionRequest


async def test_a_stage_leaves_result_manifest_and_log(tmp_path: Path) -> None:
    bench = StageBench(tmp_path, echo)
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
    bench = StageBench(tmp_path, echo)
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
    tmp_path: Path,
) -> None:
    bench = StageBench(tmp_path, echo)
    load = {"type": "http", "url": "${a.result.nothing.url}"}
    nodes = {"a": ([], {}), "b": (["a"], {"taskType": "sft", "checkpoint": {"load": load}, "data": {"prompts": ["x"]}})}
    await bench(nodes, "a")
    with pytest.raises(ExecutionError, match=r"nothing") as caught:
        await bench(nodes, "b")
    assert (caught.value.retryable, bench.waits) == (False, [])


async def test_a_spec_is_validated_again_once_it_is_resolved(tmp_path: Path) -> None:
    bench = StageBench(tmp_path, echo)
    nodes = {"a": ([], {"word": "soon"}), "b": (["a"], {"timeoutSec": "${a.result.echo.word}"})}
    await bench(nodes, "a")
    with pytest.raises(ExecutionError, match=r"invalid once its references are filled in: spec\.timeoutSec"):
        await bench(nodes, "b")


async def test_a_finished_stage_is_not_run_again_for_the_same_spec_only(tmp_path: Path) -> None:
    bench = StageBench(tmp_path, echo)
    first, second = await bench({"a": ([], {"x": 1})}), await bench({"a": ([], {"x": 1})})
    assert (first.reused, second.reused, len(bench.attempts)) == (False, True, 1)
    third = await bench({"a": ([], {"x": 2})})
    assert (third.reused, bench.attempts) == (False, ["1-1", "1-2"])
    assert json.loads(Path(third.result_path or "").read_text())["echo"]["x"] == 2


async def test_a_result_lost_between_commit_and_publishing_is_restored(tmp_path: Path) -> None:
    bench = StageBench(tmp_path, echo)
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
    other = StageBench(tmp_path, echo)

    async def slow(request: ExecutionRequest, _emit: Callable[..., None]) -> dict[str, Any]:
        await other({"a": ([], {})})
        return {"late": True}

    outcome = await StageBench(tmp_path, slow)({"a": ([], {})})
    assert json.loads(Path(outcome.result_path or "").read_text()) == {
        "ok": True,
        "echo": other.dispatcher.requests[0].spec,
    }


async def test_a_forbidden_destination_is_refused_before_the_work(tmp_path: Path) -> None:
    bench = StageBench(tmp_path, echo)
    with pytest.raises(ExecutionError, match="is not allowed"):
        await bench({"a": ([], {"output": {"destination": {"type": "http", "url": "http://example.org/x"}}})})
    with pytest.raises(ArtifactError, match="leaves the results root"):
        await bench({"a": ([], {"output": {"destination": {"path": "../out"}}})})
    assert bench.attempts == []


async def test_results_go_to_the_destination_path(tmp_path: Path) -> None:
    outcome = await StageBench(tmp_path, echo)({"a": ([], {"output": {"destination": {"path": "mine"}}})})
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
    bench = StageBench(tmp_path, run)
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
        await StageBench(tmp_path, run)({"a": ([], {})})
    rows = [r for r in caplog.records if r.message.startswith("row ")]
    assert ("engine: vllm (the stage asks for a GPU)", logging.INFO) in [(r.message, r.levelno) for r in caplog.records]
    assert (len(rows), {r.levelno for r in rows}) == (199, {logging.WARNING})
    assert "further lines of the executor are in logs/stage.log only" in caplog.text
    assert "row 299" in (tmp_path / "results" / "id-a" / "logs" / "stage.log").read_text()


async def test_references_without_a_value_are_told_to_who_watches(tmp_path: Path) -> None:
    bench = StageBench(tmp_path, lambda _request, _emit: {"items": [{"output": "", "error": "too long"}]})
    await bench({"a": ([], {})})
    seen: list[ExecutionEvent] = []
    bench.recorder.stage_event = lambda _key, event: seen.append(event)  # type: ignore[method-assign]
    data = {"text": "${a.result.items[0].output}, ${a.result.items[9].output}"}
    await bench({"a": ([], {}), "b": (["a"], {"data": data})}, key="b")
    told = [event.data["message"] for event in seen if event.kind == "log" and event.data["level"] == "warning"]
    assert told == [
        "spec.data.text: ${a.result.items[0].output} is empty text, because the row of 'result.items[0]' failed: "
        "too long",
        "spec.data.text: ${a.result.items[9].output} is empty text, because in the result of 'a', 'result.items' has 1 "
        "items, so there is no item 9",
    ]


async def test_the_executor_is_told_which_hosts_its_data_may_come_from(tmp_path: Path) -> None:
    bench = StageBench(tmp_path, echo, allowed_hosts="data.example", base_url="http://head.example:8000")
    await bench({"a": ([], {})})
    (request,) = bench.dispatcher.requests
    assert request.settings["allowed_hosts"] == "data.example,head.example:8000"
    assert request.settings["loopback"] is True
    assert request.settings["loopback_ports"] == "1024-65535"
    assert request.settings["own_services"]["endpoints"] == ["http://head.example:8000"]


async def test_references_read_tasks_of_other_submissions_by_their_name(tmp_path: Path) -> None:
    other = "6f8b2a52-3df0-4d2b-8c61-0a6a0a3f3b11"
    bench = StageBench(tmp_path, echo)
    bench.ids = {"first": other}
    await bench({"first": ([], {"x": [7]})}, key="first")
    bench.ids = {}
    nodes = {"a": ([other], {"n": "${first.result.echo.x[0]}", "id": "${first.task_id}", "no": "<${second.result.x}>"})}
    await bench(nodes)
    spec = bench.dispatcher.requests[-1].spec
    assert (spec["n"], spec["id"], spec["no"]) == (7, other, "<>")


async def test_expected_artifacts_of_impossible_names_are_missing_ones(tmp_path: Path) -> None:
    names = ["a\0b", "n" * 5000, "../../x", "/etc/hostname"]
    outcome = await StageBench(tmp_path, echo)({"a": ([], {"output": {"artifacts": names}})})
    manifest = json.loads((Path(outcome.result_path or "").parent / "manifest.json").read_text())
    found = [e["status"] for e in manifest["entries"] if e["path"] in {n.strip("/") for n in names}]
    assert found == ["missing"] * 4


async def test_a_result_from_outside_ends_the_running_attempt(tmp_path: Path) -> None:
    bench, watch = StageBench(tmp_path, forever), Outside()
    bench.options = replace(bench.options, watch=watch)
    run = asyncio.ensure_future(bench({"a": ([], {})}))
    await until(lambda: bench.events.words)
    path = tmp_path / "results" / "id-a" / "responses.json"
    path.write_text('{"task_id": "id-a", "result": {"by": "somebody"}}')
    watch.done.set()
    outcome = await run
    assert (outcome.status, outcome.result_path) == ("DONE", str(path))
    manifest = json.loads((path.parent / "manifest.json").read_text())
    assert (manifest["status"], manifest["engine"]) == ("DONE", "outside")
    assert (await StageBench(tmp_path, forever)({"a": ([], {})})).reused
    nodes = {"a": ([], {}), "b": (["a"], {"x": "${a.result.by}"})}
    later = StageBench(tmp_path, echo)
    await later(nodes, "b")
    assert later.dispatcher.requests[0].spec["x"] == "somebody"


async def test_a_result_from_outside_ends_the_wait_for_a_retry(tmp_path: Path) -> None:
    bench, watch = StageBench(tmp_path, failing(9, killed), retry_base_delay=1000), Outside()
    bench.sleep = asyncio.sleep
    bench.options = replace(bench.options, watch=watch)
    run = asyncio.ensure_future(bench({"a": ([], {})}))
    await until(lambda: ("failed", 1) in bench.events.words)
    (tmp_path / "results" / "id-a" / "responses.json").write_text("{}")
    watch.done.set()
    assert (await run).ok
    assert len(bench.attempts) == 1


async def test_a_completion_without_a_result_is_an_error(tmp_path: Path) -> None:
    bench, watch = StageBench(tmp_path, forever), Outside()
    bench.options = replace(bench.options, watch=watch)
    watch.done.set()
    with pytest.raises(ArtifactError, match="share one results root"):
        await bench({"a": ([], {})})


@pytest.mark.parametrize("how", ["record", "board"])
async def test_a_cancelled_task_ends_alone(tmp_path: Path, how: str) -> None:
    bench, watch = StageBench(tmp_path, forever), Outside()
    bench.options = replace(bench.options, watch=watch)
    run = asyncio.ensure_future(bench({"a": ([], {})}))
    await until(lambda: bench.events.words)
    (watch.stopped if how == "record" else bench.cancel).set()
    outcome = await run
    assert (outcome.status, outcome.error) == ("CANCELLED", "cancelled")
    assert not (tmp_path / "results" / "id-a" / "manifest.json").exists()


async def test_a_task_that_was_cancelled_before_it_starts_never_runs(tmp_path: Path) -> None:
    bench, watch = StageBench(tmp_path, echo), Outside()
    bench.options = replace(bench.options, watch=watch)
    watch.stopped.set()
    assert (await bench({"a": ([], {})})).status == "CANCELLED"
    assert bench.attempts == []
    assert bench.events.words == []


async def test_a_task_that_is_cancelled_as_it_ends_has_no_result(tmp_path: Path) -> None:
    """The watch would see it a moment later; the answer to the cancellation has been sent."""
    watch = Outside()

    def run(request: ExecutionRequest, emit: Callable[..., None]) -> dict[str, Any]:
        watch.late = True
        return echo(request, emit)

    bench = StageBench(tmp_path, run)
    bench.options = replace(bench.options, watch=watch)
    outcome = await bench({"a": ([], {})})
    assert (outcome.status, outcome.error) == ("CANCELLED", "cancelled")
    assert len(bench.attempts) == 1
    assert not (tmp_path / "results" / "id-a" / "manifest.json").exists()


async def test_an_envelope_of_our_own_endpoint_is_what_the_manifest_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results" / "id-a" / "responses.json"

    async def deliver(destination: Any, *, stage_run: str | None, **_: Any) -> None:
        path.write_text('{"task_id": "id-a", "result": {}}')

    monkeypatch.setattr(commit, "deliver", deliver)
    nodes = {"a": ([], {"output": {"destination": {"type": "http", "url": "http://127.0.0.1:8080/x"}}})}
    assert (await StageBench(tmp_path, echo)(nodes)).ok
    assert (await StageBench(tmp_path, forever)(nodes)).reused
    assert path.read_text() == '{"task_id": "id-a", "result": {}}'


SECRET = "top-secret-value"


async def test_secrets_of_the_spec_are_in_no_log_state_or_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(request: ExecutionRequest, emit: Callable[..., None]) -> dict[str, Any]:
        emit("log", message=f"calling with {request.spec['api_key']}", level="info")
        raise ExecutionError(f"refused: Bearer {SECRET} at http://u:pw@h/", hint=f"not {SECRET}", retryable=False)

    bench = StageBench(tmp_path, run)
    caplog.set_level(logging.INFO)
    with pytest.raises(ExecutionError) as caught:
        await bench({"a": ([], {"api_key": SECRET})})
    log = (tmp_path / "results" / "id-a" / "logs" / "stage.log").read_text()
    assert "calling with ***" in log
    assert "refused: Bearer *** at http://u:***@h/" in log
    for text in (log, str(caught.value), caplog.text, str(bench.events.__dict__)):
        assert SECRET not in text
