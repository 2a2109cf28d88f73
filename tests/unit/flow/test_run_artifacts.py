"""What a run shows in Prefect: the plan, the result, and progress that must never fail a stage."""

from __future__ import annotations

import asyncio
import json
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import pytest
from prefect.exceptions import ObjectNotFound

from mloc_prefect.execution.protocol import ExecutionEvent
from mloc_prefect.flow.outcome import StageOutcome, WorkflowOutcome
from mloc_prefect.flow.reports import run_artifacts
from mloc_prefect.flow.reports.run_artifacts import ProgressArtifact, plan_markdown, publish, result_markdown
from mloc_prefect.flow.reports.stage_log import StageLog
from tests.support.flows import graph

if TYPE_CHECKING:
    from pathlib import Path


class Client:
    """Takes artifacts, or refuses them."""

    def __init__(self, broken: Exception | None = None) -> None:
        self.shown: list[tuple[float, str]] = []
        self.broken = broken

    async def create_artifact(self, artifact: Any) -> Any:
        await self.update_artifact(None, artifact)
        return SimpleNamespace(id=uuid4())

    async def update_artifact(self, _id: Any, artifact: Any) -> None:
        if self.broken:
            raise self.broken
        self.shown.append((artifact.data, artifact.description))


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_artifacts, "PROGRESS_AFTER", 0.01)
    monkeypatch.setattr(run_artifacts, "PROGRESS_EVERY", 0.01)


def progress(done: int, total: int) -> ExecutionEvent:
    return ExecutionEvent("progress", {"done": done, "total": total}, 0.0)


async def test_a_short_stage_shows_no_progress() -> None:
    client = Client()
    async with ProgressArtifact(client, uuid4(), "w:a") as artifact:  # type: ignore[arg-type]  # stands in
        artifact.event(progress(1, 2))
    assert client.shown == []


@pytest.mark.usefixtures("_quick")
async def test_a_long_stage_shows_each_change_once_and_its_end() -> None:
    client = Client()
    async with ProgressArtifact(client, uuid4(), "w:a") as artifact:  # type: ignore[arg-type]  # stands in
        artifact.event(ExecutionEvent("phase", {"text": "loading weights", "fraction": 0.4}, 0.0))
        while not client.shown:
            await asyncio.sleep(0.001)
        artifact.event(progress(1, 4))
        while len(client.shown) < 2:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        artifact.event(progress(4, 4))
    assert client.shown == [(0.0, "w:a: loading weights 40 %"), (25.0, "w:a: 1/4 rows"), (100.0, "w:a: 4/4 rows")]


@pytest.mark.usefixtures("_quick")
async def test_a_training_shows_its_steps(tmp_path: Path) -> None:
    client, steps = Client(), ExecutionEvent("progress", {"done": 3, "total": 4, "unit": "steps"}, 9.0)
    async with ProgressArtifact(client, uuid4(), "w:a") as artifact:  # type: ignore[arg-type]  # stands in
        artifact.event(steps)
        while not client.shown:
            await asyncio.sleep(0.001)
    assert client.shown == [(75.0, "w:a: 3/4 steps")]
    with StageLog(tmp_path) as log:
        log.event(steps)
    assert (tmp_path / "logs" / "stage.log").read_text().endswith(" progress: 3/4 steps\n")


@pytest.mark.usefixtures("_quick")
async def test_the_progress_has_rates_and_the_time_that_is_left() -> None:
    client = Client()
    async with ProgressArtifact(client, uuid4(), "w:a") as artifact:  # type: ignore[arg-type]  # stands in
        artifact.event(ExecutionEvent("progress", {"done": 0, "total": 4, "tokens_in": 0, "tokens_out": 0}, 0.0))
        await asyncio.sleep(0.02)
        artifact.event(ExecutionEvent("progress", {"done": 1, "total": 4, "tokens_in": 9, "tokens_out": 99}, 0.0))
        while "left" not in str(client.shown[-1:]):
            await asyncio.sleep(0.001)
        artifact.event(ExecutionEvent("phase", {"text": "unloading"}, 0.0))  # not what the run ends with
    assert any(
        re.fullmatch(r"w:a: 1/4 rows, [0-9.]+ tokens/s in, \d+ out, about [0-9.]+ s left", t) for _, t in client.shown
    )
    assert client.shown[-1][1].startswith("w:a: 1/4 rows")


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("error", [httpx.ConnectError("gone"), ObjectNotFound(Exception(), help_message="gone")])
async def test_a_display_that_fails_does_not_fail_the_stage(caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    client = Client(error)
    async with ProgressArtifact(client, uuid4(), "w:a") as artifact:  # type: ignore[arg-type]  # stands in
        artifact.event(progress(1, 4))
        async with asyncio.timeout(60):
            while "could not be shown" not in caplog.text:
                await asyncio.sleep(0.001)
    await publish(client, uuid4(), "mloc-plan", "# x", "x")  # type: ignore[arg-type]  # stands in
    assert "progress of w:a could not be shown: gone" in caplog.text
    assert "artifact mloc-plan could not be made" in caplog.text


def test_the_plan_is_a_table_without_the_documents() -> None:
    secret = {"output": {"destination": {"type": "http", "url": "http://h/x", "headers": {"Authorization": "hush"}}}}
    text = plan_markdown(graph({"a": ([], secret), "b": (["a"], {})}), {"a": "id-a", "b": "id-b"})
    assert "| b | echo |  | a | 1 cpu, 64 MiB | `id-b` |" in text
    assert "hush" not in text
    assert "http://h" not in text


def test_the_result_shows_status_usage_and_samples(tmp_path: Path) -> None:
    path = tmp_path / "responses.json"
    first = {"prompt": "What\nis it?", "output": "first | line\nsecond"}
    items = [first, {"output": "x" * 500}, {"output": 3}, {"output": "not shown"}]
    path.write_text(json.dumps({"task_id": "1", "result": {"items": items}}))  # as the endpoint keeps it
    done = StageOutcome(
        key="a",
        node="a",
        task_id="1",
        status="DONE",
        result_path=str(path),
        summary={"engine": "transformers", "why": "no GPU", "usage": {"prompt_tokens": 5, "model": "m"}},
        reused=True,
    )
    bad = StageOutcome(key="b", node="b", task_id="2", status="FAILED", error="a | b\nmore")
    text = result_markdown(WorkflowOutcome(ok=False, flow_run_id="r", name="w", tasks=(done, bad)), {"a": 1.26})
    assert f"| a | DONE (reused) | 1.3 s | transformers (no GPU) | prompt tokens 5 | `{path}` |" in text
    assert "| b | FAILED | 0.0 s |  |  | a \\| b |" in text
    assert "What is it?\n\n> first | line\n> second" in text
    assert "x" * 299 + "…" in text
    assert "not shown" not in text


def test_results_without_rows_or_too_large_have_no_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "responses.json"
    path.write_text('{"items": [{"output": "x"}]}')
    task = StageOutcome(key="a", node="a", task_id="1", status="DONE", result_path=str(path))
    outcome = WorkflowOutcome(ok=True, flow_run_id="r", name="w", tasks=(task,))
    assert "Samples of a" in result_markdown(outcome, {})
    monkeypatch.setattr(run_artifacts, "_READABLE", 3)
    assert "Samples" not in result_markdown(outcome, {})
    monkeypatch.undo()
    path.write_text('{"echo": {}}')
    assert "Samples" not in result_markdown(outcome, {})
    path.write_text("stored by somebody else, and no JSON")
    assert "Samples" not in result_markdown(outcome, {})
