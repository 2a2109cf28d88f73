"""A host killed in the middle of a batch: the next attempt does not redo what was finished."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from pathlib import Path

import pytest

from mloc_prefect.errors import ExecutionError
from mloc_prefect.execution.hosts import HostPool
from mloc_prefect.execution.protocol import ExecutionRequest
from tests.support.counts import count
from tests.support.hosts import HELD, Runner, echo_request, host_spec, read_json, run_dir_of
from tests.support.patience import FACT_SECONDS

ROWS = 40
SPEC = {"data": {"type": "list", "items": [f"row {n}" for n in range(ROWS)]}, "echo": {"row_delay": 0.01}}
HOST = host_spec(HELD)


@pytest.mark.counted
@pytest.mark.parametrize("number", range(count("rows_kill", 2, 50)))
async def test_killed_in_mid_batch(tmp_path: Path, number: int) -> None:
    stop_at = random.Random(number).randrange(2, ROWS - 8)
    async with HostPool(run_dir_of(tmp_path), idle_seconds=60, start_seconds=30) as pool:
        run = Runner(pool, tmp_path)
        request = echo_request(tmp_path, attempt=1, **SPEC, hold=[ROWS - 1, str(tmp_path / "never")])
        host = await pool.acquire(HOST)

        def kill_late(event) -> None:
            if event.data.get("done", 0) >= stop_at:
                os.kill(host.pid, signal.SIGKILL)

        with pytest.raises(ExecutionError) as caught:
            await run(request, HOST, on_event=kill_late)
        assert caught.value.failure.kind == "killed"
        first = finished(tmp_path, 1)
        assert stop_at <= len(first) < ROWS

        result = await run(echo_request(tmp_path, attempt=2, **SPEC), HOST)
        second = finished(tmp_path, 2)
        assert sorted([*first, *second]) == list(range(ROWS))  # every row once
        assert result.reused_rows == len(first)
        assert [item["output"] for item in read_json(result.path)["items"]] == SPEC["data"]["items"]


async def test_attempts_may_be_cut_anywhere(tmp_path: Path) -> None:
    """Several kills, a torn line and a foreign file on the way: each row is still computed once."""
    async with HostPool(run_dir_of(tmp_path), idle_seconds=60, start_seconds=30) as pool:
        run = Runner(pool, tmp_path)
        for attempt in range(1, 4):
            hold = [8 * attempt + 4, str(tmp_path / "never")]
            await cancelled_after(run, echo_request(tmp_path, attempt=attempt, **SPEC, hold=hold), rows=8 * attempt)
        journal = tmp_path / "task" / "attempts" / "1-3" / "items.jsonl"
        cut = journal.read_bytes()[:-5]  # as a power cut leaves it
        journal.write_bytes(cut)
        kept = [index for attempt in range(1, 4) for index in finished(tmp_path, attempt)]
        assert 0 < len(kept) < ROWS
        result = await run(echo_request(tmp_path, attempt=4, **SPEC), HOST)
        assert sorted([*kept, *finished(tmp_path, 4)]) == list(range(ROWS))
        assert len(read_json(result.path)["items"]) == ROWS


async def test_changed_input_is_computed_again(tmp_path: Path) -> None:
    async with HostPool(run_dir_of(tmp_path), idle_seconds=60, start_seconds=30) as pool:
        run = Runner(pool, tmp_path)
        await run(echo_request(tmp_path, attempt=1, data={"items": ["a", "b", "c"]}), host_spec())
        result = await run(echo_request(tmp_path, attempt=2, data={"items": ["a", "B", "c"]}), host_spec())
        assert finished(tmp_path, 2) == [1]
        assert [item["output"] for item in read_json(result.path)["items"]] == ["a", "B", "c"]


async def cancelled_after(run: Runner, request: ExecutionRequest, rows: int) -> None:
    """Run the request and cancel it when `rows` rows are done."""
    enough = asyncio.Event()
    task = asyncio.create_task(
        run(request, HOST, on_event=lambda event: enough.set() if event.data["done"] >= rows else None)
    )
    await asyncio.wait_for(enough.wait(), FACT_SECONDS)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def finished(root: Path, attempt: int) -> list[int]:
    """Return the indices of the whole lines in a journal."""
    text = (root / "task" / "attempts" / f"1-{attempt}" / "items.jsonl").read_text()
    return [json.loads(line)["index"] for line in text.splitlines(keepends=True) if line.endswith("\n")]
