"""Workers of the original protocol in memory, played by the test."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.protocol import ExecutionRequest
from mloc_prefect.flow.dispatcher import StageJob
from mloc_prefect.mloc_workers.mloc_dispatcher import MlocDispatcher
from mloc_prefect.mloc_workers.worker_session import SessionTimes
from mloc_prefect.plan.resources import ResourceRequest
from mloc_prefect.store.backends import memory_stores
from mloc_prefect.store.interfaces import TASK_EVENTS, TASKS, WORKER_EVENTS
from mloc_prefect.store.records import WorkerRecord
from mloc_prefect.tasks.base import ExecutorRef
from tests.support.original_worker import hardware

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mloc_prefect.store.backends import Stores


QUICK = SessionTimes(acknowledge=30.0, poll=0.03, lease=5.0, result=0.05, retry=0.02, close=0.1)
IMPATIENT = replace(QUICK, acknowledge=0.3)


def worker(worker_id: str = "w-a", **changes: Any) -> WorkerRecord:
    given: dict[str, Any] = {"status": "IDLE", "hardware": hardware(), "started_at": "t0"} | changes
    return WorkerRecord(worker_id=worker_id, **given)


def job(root: Path, attempt: int = 1, *, task_id: str = "t1", spec: dict | None = None, **changes: Any) -> StageJob:
    task = root / task_id
    directory = task / "attempts" / f"1-{attempt}"
    directory.mkdir(parents=True, exist_ok=True)
    request = ExecutionRequest(
        task_id, "pipe:first", "inference", "x:Y", spec or {"data": {}}, str(task), str(directory), attempt=attempt
    )
    given = {"executor": ExecutorRef("x:Y"), "resources": ResourceRequest()} | changes
    return StageJob(request=request, **given)


@dataclass
class Site:
    """Workers in memory, played by the test."""

    stores: Stores
    dispatcher: MlocDispatcher
    root: Path
    sent: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    async def join(self, *workers: WorkerRecord, hears: bool = True) -> None:
        if hears:
            self.stores.publisher.subscribe(TASKS, self.sent.put_nowait)
        for record in workers or (worker(),):
            await self.stores.workers.register(record, ttl=60)

    def start(self, what: StageJob) -> asyncio.Task[Any]:
        def note(event: Any) -> None:
            self.events.append((event.kind, event.data))

        return asyncio.create_task(self.dispatcher.dispatch(what, on_event=note))

    async def message(self) -> dict[str, Any]:
        return await asyncio.wait_for(self.sent.get(), 60)

    async def begins(self, worker_id: str = "w-a", task_id: str = "t1") -> None:
        extra = {"task_id": task_id}
        message = {"type": "STATUS", "worker_id": worker_id, "status": "RUNNING", "extra": extra}
        await self.stores.workers.set_status(worker_id, "RUNNING", extra=extra, messages=[(WORKER_EVENTS, message)])

    async def says(self, kind: str, worker_id: str = "w-a", task_id: str = "t1", **more: Any) -> None:
        message = {"type": kind, "worker_id": worker_id, "task_id": task_id, **more}
        await self.stores.publisher.publish(TASK_EVENTS, message)

    async def rests(self, worker_id: str = "w-a", task_id: str = "t1") -> None:
        extra = {"last_task": task_id}
        message = {"type": "STATUS", "worker_id": worker_id, "status": "IDLE", "extra": extra}
        await self.stores.workers.set_status(worker_id, "IDLE", extra=extra, messages=[(WORKER_EVENTS, message)])

    def writes(self, content: Any, task_id: str = "t1") -> None:
        (self.root / task_id / "responses.json").write_text(json.dumps(content))

    async def told(self, kind: str) -> None:
        async with asyncio.timeout(60):
            while not self.seen(kind):
                await asyncio.sleep(0.01)

    def seen(self, kind: str) -> list[dict[str, Any]]:
        return [data for found, data in self.events if found == kind]


@asynccontextmanager
async def site(root: Path, times: SessionTimes = QUICK) -> AsyncIterator[Site]:
    stores = memory_stores()
    dispatcher = MlocDispatcher(stores, root, times)
    try:
        yield Site(stores, dispatcher, root)
    finally:
        await dispatcher.close()
