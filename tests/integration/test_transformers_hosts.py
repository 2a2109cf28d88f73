"""SmolLM2 in real host processes: answers, warmth, a kill in mid-batch, and faults as the caller sees them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.errors import ExecutionError
from mloc_prefect.execution.hosts import HostPool
from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionRequest
from mloc_prefect.process.run_dir import run_dir
from tests.support.hosts import Runner, host_spec, read_json
from tests.support.patience import FACT_SECONDS
from tests.support.smollm import prepared_home
from tests.support.tiny_model import save_tiny_model

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from mloc_prefect.execution.protocol import ExecutionResult

EXECUTOR = "held_executors:Transformers"
EXACT = {"model": {"transformers": {"dtype": "float32"}}, "inference": {"temperature": 0, "batch_size": 1}}
"""What makes texts comparable: float32 and one row per batch."""


@pytest.fixture(scope="module")
def mirrors() -> str:
    return str(prepared_home() / "mirrors.yaml")


@pytest.fixture
async def runner(tmp_path: Path) -> AsyncIterator[Runner]:
    async with HostPool(run_dir(tmp_path / "home"), idle_seconds=120, start_seconds=60) as pool:
        yield Runner(pool, tmp_path)


class Task:
    """Attempts at one task of SmolLM2."""

    def __init__(self, runner: Runner, mirrors: str, name: str, data: dict[str, Any] | list[str], **spec: Any) -> None:
        self.runner = runner
        self.dir = runner.root / name
        self.mirrors = mirrors
        self.attempt = 0
        self.events: list[ExecutionEvent] = []
        self.spec = {
            "taskType": "inference",
            "data": data if isinstance(data, dict) else {"type": "list", "items": data},
            **spec,
            "model": {"source": {"identifier": "smollm2"}, **spec.get("model", {})},
        }

    async def run(self, on_event: Any = None) -> ExecutionResult:
        self.attempt += 1
        request = ExecutionRequest(
            task_id=self.dir.name,
            name=self.dir.name,
            task_type="inference",
            executor=EXECUTOR,
            spec=self.spec,
            task_dir=str(self.dir),
            attempt_dir=str(self.attempt_dir),
            attempt=self.attempt,
            settings={"home": str(self.dir), "mirrors": self.mirrors, "base_dir": str(self.runner.root)},
        )
        self.events.clear()

        def keep(event: ExecutionEvent) -> None:
            self.events.append(event)
            if on_event:
                on_event(event)

        return await self.runner(request, host_spec(EXECUTOR), on_event=keep)

    @property
    def attempt_dir(self) -> Path:
        return self.dir / "attempts" / f"1-{self.attempt}"

    def rows(self, attempt: int) -> dict[int, dict[str, Any]]:
        """Return the whole lines of an attempt's journal by index."""
        text = (self.dir / "attempts" / f"1-{attempt}" / "items.jsonl").read_text()
        return {row["index"]: row for row in map(json.loads, text.splitlines())}

    async def fails(self) -> ExecutionError:
        with pytest.raises(ExecutionError) as caught:
            await self.run()
        assert caught.value.failure is not None
        return caught.value


async def test_one_warm_host_answers_lists_files_and_chats_of_several_models(runner: Runner, mirrors: str) -> None:
    (runner.root / "rows.jsonl").write_text('{"q": "1, 2, 3,"}\n{"q": "a, b, c,"}\n{"q": "x"}\n')
    listed = Task(runner, mirrors, "listed", ["1, 2, 3,", "a, b, c,"], inference={"temperature": 0, "max_tokens": 6})
    data = {"type": "dataset", "url": "rows.jsonl", "column": "q", "split": "train[:2]"}
    filed = Task(runner, mirrors, "filed", data, inference={"temperature": 0, "max_tokens": 6})
    question = ["What is the capital of France? Answer with one word."]
    chat = Task(
        runner, mirrors, "chat", question, inference={"temperature": 0, "max_tokens": 24, "chat_template": True}
    )
    tiny = Task(
        runner,
        mirrors,
        "tiny",
        ["1, 2, 3,"],
        model={"source": {"identifier": str(save_tiny_model(runner.root / "tiny-model"))}},
        inference={"temperature": 0, "max_tokens": 6},
    )
    results = [await task.run() for task in (listed, filed, chat, tiny)]
    answers = [read_json(result.path) for result in results]
    assert len({result.host_pid for result in results}) == 1
    assert [item["output"] for item in answers[0]["items"]] == [item["output"] for item in answers[1]["items"]]
    assert "4" in answers[0]["items"][0]["output"]
    assert "Paris" in answers[2]["items"][0]["output"]
    assert [answer["model"] for answer in answers] == ["smollm2"] * 3 + [tiny.spec["model"]["source"]["identifier"]]
    loads = [any(e.data.get("text") == "loading weights" for e in task.events) for task in (listed, filed, chat, tiny)]
    assert loads == [True, False, False, True]
    assert results[0].summary["engine"] == "transformers"
    assert results[0].summary["usage"]["num_requests"] == 2


async def test_after_kill_9_in_mid_batch_only_missing_rows_are_computed(runner: Runner, mirrors: str) -> None:
    asked = [f"Write a sentence about the number {i}." for i in range(4)]
    prompts = {"type": "list", "items": [*asked[:2], *([{"role": "user", "content": text}] for text in asked[2:])]}
    spec = {**EXACT, "inference": {**EXACT["inference"], "max_tokens": 8}}
    whole = Task(runner, mirrors, "whole", prompts, **spec)
    expected = read_json((await whole.run()).path)

    task = Task(runner, mirrors, "killed", prompts, **spec, hold=[3, str(runner.root / "let-go")])
    host = await runner.hosts.acquire(host_spec(EXECUTOR))

    def kill_once_two_rows_ended(event: ExecutionEvent) -> None:
        if event.kind == "progress" and event.data["done"] >= 2:
            with contextlib.suppress(ProcessLookupError):
                os.kill(host.pid, signal.SIGKILL)
            (runner.root / "let-go").touch()

    with pytest.raises(ExecutionError) as caught:
        await task.run(kill_once_two_rows_ended)
    assert caught.value.failure is not None
    assert (caught.value.failure.kind, caught.value.failure.signal) == ("killed", "SIGKILL")
    assert caught.value.retryable
    kept = task.rows(1)
    assert 2 <= len(kept) < 4

    result = await task.run()
    assert set(task.rows(2)) == set(range(4)) - set(kept)
    assert result.reused_rows == len(kept)
    answer = read_json(result.path)
    assert answer["items"] == expected["items"]
    assert answer["usage"] == expected["usage"]
    assert "<|im_start|>user" in answer["items"][3]["metadata"]["rendered_prompt"], "of texts and chats alike"


async def test_faults_reach_the_caller_as_one_line_and_are_not_retried(runner: Runner, mirrors: str) -> None:
    (runner.root / "rows.jsonl").write_text('{"q": "a"}\n')
    (runner.root / "empty.jsonl").touch()
    dataset = {"type": "dataset", "url": "rows.jsonl"}
    short = {"temperature": 0, "max_tokens": 2}
    faults = {
        "Failed to load model/tokenizer: model 'org/none' was not found in any of three places": {
            "data": ["a"],
            "model": {"source": {"identifier": "org/none"}},
        },
        "Column 'text' not found in dataset. Available: ['q']": {"data": dataset},
        "No prompts prepared. Check spec.data configuration.": {"data": {**dataset, "url": "empty.jsonl"}},
        "1 of 2 rows failed (inference.max_failed_rows is 0): row 1: the prompt has ": {
            "data": ["fine", "long " * 9000],
            "inference": short,
        },
    }
    for number, (problem, spec) in enumerate(faults.items()):
        error = await Task(runner, mirrors, f"fault-{number}", **spec).fails()
        assert str(error.message).startswith(problem)
        assert "\n" not in error.message
        assert (error.failure.kind, error.retryable) == ("user", False)  # type: ignore[union-attr]


async def test_a_cancelled_task_leaves_a_host_that_works(runner: Runner, mirrors: str) -> None:
    started = asyncio.Event()
    long = Task(runner, mirrors, "long", ["Once upon a time"], inference={"max_tokens": 4000, "temperature": 1.0})
    running = asyncio.create_task(
        long.run(lambda e: started.set() if e.kind == "phase" and e.data["text"] == "generating" else None)
    )
    await asyncio.wait_for(started.wait(), FACT_SECONDS)
    before = await runner.hosts.acquire(host_spec(EXECUTOR))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    short = Task(runner, mirrors, "short", ["1, 2, 3,"], inference={"temperature": 0, "max_tokens": 2})
    assert (await short.run()).host_pid == before.pid
