"""Divides tasks with the dispatcher's twin in memory."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionRequest
from mloc_prefect.executors.common.shard_rows import rows_of_shard
from mloc_prefect.flow.dispatcher import MemoryDispatcher, StageJob
from mloc_prefect.flow.shards.sharding_dispatcher import ShardingDispatcher, ShardScope
from mloc_prefect.plan.resources import ResourceRequest
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
    rows, first = rows_of_shard(data.get("items", DATASET), request.spec)
    emit("progress", done=len(rows), total=len(rows), tokens_out=len(rows))
    items = [{"index": first + i, "output": row.upper()} for i, row in enumerate(rows)]
    usage = {"prompt_tokens": len(rows), "latency_sec": 0.25}
    return {"ok": True, "model": "m", "items": items, "usage": usage}


async def no_wait(_seconds: float) -> None: ...


@dataclass
class ShardBench:
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
        scope = ShardScope(
            dispatcher=self.inner, settings=settings, root=self.root, stopped=self.stopped, sleep=no_wait
        )
        dispatcher = ShardingDispatcher(scope, capacity=capacity)
        return await dispatcher.dispatch(job, on_event=self.events.append)

    def told(self, what: str) -> list[dict[str, Any]]:
        return [e.data for e in self.events if e.kind == "shard" and e.data["step"] == what]


def read(result: ExecutionResult) -> dict[str, Any]:
    found = json.loads(Path(result.path).read_text())
    return found["result"] if result.envelope else found
