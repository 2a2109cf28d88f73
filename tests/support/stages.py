"""Runs single stages with the dispatcher's twin in memory."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.errors import ExecutionError, ExecutionFailure
from mloc_prefect.flow.dispatcher import MemoryDispatcher
from mloc_prefect.flow.fencing import NoFence
from mloc_prefect.flow.options import RunOptions
from mloc_prefect.flow.stage_runner import RunScope, StageRun, run_stage
from mloc_prefect.settings import get_settings
from tests.support.flows import Recorder, graph

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mloc_prefect.execution.protocol import ExecutionRequest
    from mloc_prefect.flow.outcome import StageOutcome


class RecordedEvents:
    """Keeps what the server would be told."""

    def __init__(self) -> None:
        self.facts: list[tuple[str, int, dict[str, Any]]] = []

    def report(self, what: str, attempt: int, **facts: Any) -> None:
        self.facts.append((what, attempt, facts))

    @property
    def words(self) -> list[tuple[str, int]]:
        return [(what, attempt) for what, attempt, _ in self.facts]


class Outside:
    """A watch that a test moves."""

    def __init__(self) -> None:
        self.done, self.stopped = asyncio.Event(), asyncio.Event()
        self.late = False  # cancelled, though no event has told yet

    async def completed(self, task_id: str) -> None:
        await self.done.wait()

    async def cancelled(self, task_id: str) -> None:
        await self.stopped.wait()

    async def is_cancelled(self, task_id: str) -> bool:
        return self.late or self.stopped.is_set()


class StageBench:
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
        self.events = RecordedEvents()
        self.cancel = asyncio.Event()
        self.waits: list[float] = []
        self.sleep: Callable[[float], Awaitable[None]] = self.no_wait

    async def no_wait(self, seconds: float) -> None:
        self.waits.append(seconds)

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
            sleep=self.sleep,
        )
        run = StageRun(log=logging.getLogger("test"), events=self.events, cancel=self.cancel, begun=self.begun)
        return await run_stage(plan.stage(key), scope, run)

    @property
    def attempts(self) -> list[str]:
        return [Path(r.attempt_dir).name for r in self.dispatcher.requests]


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


async def forever(request: ExecutionRequest, emit: Callable[..., None]) -> dict[str, Any]:
    emit("progress", done=0, total=1)
    await asyncio.Event().wait()
    return {}


async def until(fact: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not fact():
            await asyncio.sleep(0)
            await asyncio.to_thread(lambda: None)


def cancelled() -> ExecutionError:
    failure = ExecutionFailure("cancelled", kind="cancelled")
    return ExecutionError(failure.message, retryable=False, failure=failure)
