"""Between workers of ours and those of the original protocol: who gets a stage, and when that changes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from mloc_prefect.errors import StoreError
from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionRequest, ExecutionResult
from mloc_prefect.flow.dispatcher import StageJob
from mloc_prefect.plan.resources import ResourceRequest
from mloc_prefect.tasks.base import ExecutorRef
from mloc_prefect.worker.placement import PlacingDispatcher

JOB = StageJob(
    request=ExecutionRequest("t", "t", "inference", "x:Y", {}, "/t", "/t/a"),
    executor=ExecutorRef("x:Y"),
    resources=ResourceRequest(),
)


@dataclass
class Card:
    """A worker of ours."""

    fits: bool = True
    free: bool = True
    id: str = "ours"

    def could_run(self, _request: ResourceRequest) -> bool:
        return self.fits

    def has_room(self, _request: ResourceRequest, *, lease: bool) -> bool:
        return self.fits and self.free


@dataclass
class Way:
    """A dispatcher that waits until it is told to place the job."""

    name: str
    ready: bool = False
    fitting: bool = False
    broken: bool = False
    go: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[str] = field(default_factory=list)

    async def dispatch(self, job: StageJob, *, on_event: Any, **_: Any) -> ExecutionResult:
        self.calls.append("began")
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.calls.append("left")
            raise
        on_event(ExecutionEvent("placed", {"worker": self.name}, 0.0))
        await asyncio.sleep(0.05)
        return ExecutionResult(self.name)

    async def choice(self, _resources: ResourceRequest) -> Any:
        if self.broken:
            raise StoreError("Redis at localhost:6379 does not serve")
        return SimpleNamespace(ready=["w"] * self.ready, fitting=["w"] * (self.fitting or self.ready))


class Site:
    """A coordinator with one worker of ours at most."""

    def __init__(self, *cards: Card, mode: str = "auto", **original: bool) -> None:
        self.pool, self.original = Way("pool"), Way("original", **original)
        self.view, self.looks = SimpleNamespace(live=cards, others=cards, refresh=self.refresh), 0
        self.placing = PlacingDispatcher(
            recheck_seconds=0.02,
            local=None,
            pool=self.pool,  # type: ignore[arg-type]
            view=self.view,  # type: ignore[arg-type]
            original=self.original,
            mode=mode,
        )

    async def refresh(self) -> bool:
        self.looks += 1
        return True

    def start(self, job: StageJob = JOB) -> asyncio.Task[ExecutionResult]:
        return asyncio.create_task(self.placing.dispatch(job, on_event=lambda _: None))

    async def ends_at(self, job: StageJob = JOB) -> str:
        self.pool.go.set()
        self.original.go.set()
        return (await asyncio.wait_for(self.start(job), 60)).path


async def began(way: Way) -> None:
    async with asyncio.timeout(60):
        while not way.calls:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        ({"cards": [Card()], "ready": True}, "pool"),
        ({"cards": [Card(free=False)], "ready": True}, "original"),
        ({"cards": [Card(fits=False)], "fitting": True}, "original"),
        ({"cards": [Card(free=False)], "fitting": True}, "pool"),
        ({"cards": [], "fitting": True}, "original"),
        ({"cards": []}, "pool"),
        ({"cards": [], "ready": True, "mode": "ours"}, "pool"),
        ({"cards": [Card()], "mode": "original"}, "original"),
        ({"cards": [], "broken": True}, "pool"),
    ],
)
async def test_original_workers_get_what_ours_have_no_room_for(site: dict[str, Any], expected: str) -> None:
    assert await Site(*site.pop("cards"), **site).ends_at() == expected


async def test_a_job_that_waits_for_ours_goes_to_an_original_worker_that_gets_free() -> None:
    site = Site(Card(free=False), fitting=True)
    running = site.start()
    await began(site.pool)
    site.original.ready = True
    site.original.go.set()
    assert (await asyncio.wait_for(running, 60)).path == "original"
    assert site.pool.calls == ["began", "left"]


async def test_a_job_that_waits_for_an_original_worker_comes_back_when_ours_have_room() -> None:
    card = Card(fits=False)
    site = Site(card, fitting=True)
    running = site.start()
    await began(site.original)
    card.fits = True
    site.pool.go.set()
    assert (await asyncio.wait_for(running, 60)).path == "pool"
    assert site.original.calls == ["began", "left"]


async def test_a_job_that_has_a_worker_stays_there() -> None:
    card = Card(fits=False)
    site = Site(card, ready=True)
    site.original.go.set()
    running = site.start()
    await began(site.original)  # and has said so: nothing holds it up
    card.fits = True
    assert (await asyncio.wait_for(running, 60)).path == "original"
    assert site.pool.calls == []


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        ({"cards": [Card()], "ready": True}, "original"),
        ({"cards": [Card()], "ready": False}, "original"),
        ({"cards": [Card()], "ready": True, "mode": "ours"}, "pool"),
    ],
)
async def test_what_ours_have_no_code_for_goes_to_original_workers(site: dict[str, Any], expected: str) -> None:
    here = Site(*site.pop("cards"), **site)
    job = replace(JOB, executor=ExecutorRef("mloc_prefect.executors.not_written:X"))
    assert await here.ends_at(job) == expected
    if here.placing._mode == "auto":
        assert await here.placing.capacity(job) == int(site["ready"]), "room of ours does not count"
        assert here.looks == 1, "a task is divided by what there is now"
