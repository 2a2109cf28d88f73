"""Runs and events of our own for tests of the bridge, and a bridge on in-memory stores."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mloc_prefect.bridge.event_sources import STATES, RunEvent
from mloc_prefect.bridge.memory_runs import MemoryRuns
from mloc_prefect.bridge.prefect_runs import RunTags, RunView
from mloc_prefect.bridge.projector import Projector
from mloc_prefect.bridge.rebuild import Rebuilder
from mloc_prefect.prefect_ext.run_facts import STAGE_EVENT_PREFIX
from mloc_prefect.prefect_ext.state_reasons import StateCode
from mloc_prefect.settings import get_settings
from mloc_prefect.store.backends import memory_stores
from mloc_prefect.store.interfaces import TASK_EVENTS, TASKS, WORKER_EVENTS
from tests.support.patience import STOP_SECONDS
from tests.support.records import submit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from pathlib import Path

    from mloc_prefect.store.backends import Stores
    from mloc_prefect.store.records import TaskRecord

_numbers = itertools.count(1)
WORKER = {"worker": "w-1", "protocol": "ours"}
HAPPY = ["tasks", "STATUS RUNNING", "TASK_STARTED", "STATUS RUNNING", "TASK_SUCCEEDED", "STATUS IDLE"]
"""Messages about a task that succeeds."""


def tags(task: str | None = "t1", submission: str | None = "s1", stage: str | None = "a") -> frozenset[str]:
    """Return the tags of a stage run; without `stage` of a run of another flow, without `task` of a workflow run."""
    found = {"mloc"}
    for name, value in (("task", task), ("submission", submission), ("stage", stage if task else None)):
        if value:
            found.add(f"mloc-{name}:{value}")
    return frozenset(found | ({"mloc-type:echo"} if task else set()))


def state(name: str, *, run: str = "run-t1", at: float = 10.0, run_count: int = 1, **more: Any) -> RunEvent:
    """Return the event of a state, e.g. `Running`."""
    given = {key: more.pop(key) for key in ("task", "submission", "stage") if key in more}
    kind = {"AwaitingRetry": "SCHEDULED", "Late": "SCHEDULED"}.get(name, name.upper())
    return RunEvent(
        id=f"e{next(_numbers)}",
        name=f"{STATES}{name}",
        run_id=run,
        at=at,
        tags=tags(**given),
        type=kind,
        run_count=run_count,
        **more,
    )


def stage_event(what: str, attempt: int = 1, *, run: str = "run-t1", at: float = 10.0, **facts: Any) -> RunEvent:
    """Return an event of the stage runner."""
    given = {key: facts.pop(key) for key in ("task", "submission", "stage") if key in facts}
    payload = {"attempt": attempt, **facts}
    return RunEvent(
        id=f"e{next(_numbers)}",
        name=f"{STAGE_EVENT_PREFIX}{what}",
        run_id=run,
        at=at,
        tags=tags(**given),
        facts=payload,
    )


def started(run: str = "run-t1", task: str = "t1") -> list[RunEvent]:
    """Return the events of an attempt that was given to a worker and began."""
    return [stage_event("placed", run=run, task=task, **WORKER), stage_event("started", run=run, task=task, **WORKER)]


def view(type: str = "COMPLETED", *, run: str = "run-t1", since: float = 20.0, **more: Any) -> RunView:
    """Return a stage run in a state."""
    given = {key: more.pop(key) for key in ("task", "submission", "stage") if key in more}
    code = StateCode.COMMITTED if type == "COMPLETED" else None
    blank = RunView(id=run, tags=RunTags.of(tags(**given)), type=type, state=type.capitalize(), code=code)
    return replace(blank, since=since, created=1.0, **more)


def workflow_run(type: str = "RUNNING", *, run: str = "root-1", submission: str | None = "s1", **more: Any) -> RunView:
    """Return a workflow run in a state."""
    return replace(view(type, run=run, task=None, submission=submission), message=more.pop("message", ""), **more)


class BridgeBench:
    """Projector and records on in-memory stores."""

    def __init__(self, *views: RunView, **settings: Any) -> None:
        self.stores = memory_stores()
        self.runs = MemoryRuns(*views)
        self.settings = get_settings(**settings)
        self.rebuilder = Rebuilder(self.stores.tasks, self.settings)
        self.projector = Projector(self.stores, self.runs, self.rebuilder)

    async def submitted(self, *task_ids: str, submission: str = "s1", **changes: Any) -> None:
        """Store a submission of tasks."""
        await submit(self.stores.tasks, submission, *(task_ids or ("t1",)), **changes)

    async def record(self, task_id: str = "t1") -> TaskRecord:
        """Return a record that must exist."""
        found = await self.stores.tasks.get(task_id)
        assert found is not None
        return found

    @property
    def messages(self) -> list[str]:
        """The published messages, abbreviated: `tasks`, `TASK_STARTED`, `STATUS RUNNING` ..."""
        return [_short(channel, message) for channel, message in self.stores.publisher.sent]  # type: ignore[attr-defined]


def _short(channel: str, message: dict[str, Any]) -> str:
    if channel == "tasks":
        return "tasks"
    return f"{message['type']} {message['status']}" if message["type"] == "STATUS" else str(message["type"])


@asynccontextmanager
async def running(work: Any) -> AsyncIterator[asyncio.Future[Any]]:
    """Run `work` in the background until the block ends."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(fact: Callable[[], Any]) -> None:
    """Return as soon as `fact`, which may be a coroutine function, holds."""
    async with asyncio.timeout(5):
        while not (await fact() if asyncio.iscoroutinefunction(fact) else fact()):
            await asyncio.sleep(0.001)


# --- real processes and stores ----------------------------------------------------------------------------------------


@contextmanager
def bridge_process(env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `mloc bridge` until the block ends."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "mloc_prefect.cli", "bridge"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=dict(env),
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Heard:
    """Published messages, in order."""

    def __init__(self) -> None:
        self.all: list[tuple[str, dict[str, Any]]] = []

    def of(self, task_id: str) -> list[str]:
        """Return the messages about a task, abbreviated."""
        return [_short(channel, message) for channel, message in self.all if _task_of(message) == task_id]

    def facts(self) -> Counter[tuple[str, int, str]]:
        """Count each (task, attempt, message): `tasks`, which means DISPATCHED, and the types of events.

        A message on `tasks` names no attempt; it belongs to the one after the failures before it.
        """
        found: Counter[tuple[str, int, str]] = Counter()
        failed: Counter[str] = Counter()
        for channel, message in self.all:
            if channel == "tasks":
                found[message["task_id"], failed[message["task_id"]] + 1, "tasks"] += 1
            elif channel == "tasks.events":
                found[message["task_id"], message["payload"]["attempt"], message["type"]] += 1
                failed[message["task_id"]] += message["type"] == "TASK_FAILED"
        return found


@asynccontextmanager
async def hearing(stores: Stores) -> AsyncIterator[Heard]:
    """Listen to all channels of MLOC."""
    heard = Heard()
    async with stores.publisher.listen(TASKS, TASK_EVENTS, WORKER_EVENTS) as messages:

        async def keep() -> None:
            async for channel, message in messages:
                heard.all.append((channel, message))

        task = asyncio.create_task(keep())
        try:
            yield heard
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _task_of(message: dict[str, Any]) -> str | None:
    extra = message.get("extra") or {}
    found = message.get("task_id") or extra.get("task_id") or extra.get("last_task")
    return str(found) if found else None
