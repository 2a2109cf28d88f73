"""Workers that speak the original protocol, over a real Valkey: both generations, late, deaf, and killed."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.errors import ExecutionError
from mloc_prefect.execution.protocol import ExecutionRequest
from mloc_prefect.flow.dispatcher import StageJob
from mloc_prefect.mloc_workers.mloc_dispatcher import MlocDispatcher
from mloc_prefect.mloc_workers.worker_session import SessionTimes
from mloc_prefect.plan.resources import ResourceRequest
from mloc_prefect.store.backends import open_stores
from mloc_prefect.tasks.base import ExecutorRef
from tests.support.original_worker import OriginalWorker, expire, outcome, started_worker
from tests.support.patience import FACT_SECONDS
from tests.support.valkey import embedded_valkey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

DATABASE = 3
TIMES = SessionTimes(acknowledge=20.0, poll=0.2, lease=20.0, result=0.5, retry=0.1, close=0.5)


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with embedded_valkey(tmp_path_factory.mktemp("home"), port=26530) as server:
        yield server.url(DATABASE)


@asynccontextmanager
async def dispatcher(url: str, root: Path) -> AsyncIterator[MlocDispatcher]:
    stores = open_stores(url)
    made = MlocDispatcher(stores, root, TIMES)
    try:
        yield made
    finally:
        await made.close()
        await stores.close()


@pytest.fixture(autouse=True)
async def _no_workers(valkey: str) -> AsyncIterator[None]:
    yield
    from redis.asyncio import Redis

    async with Redis.from_url(valkey) as redis:
        await redis.flushdb()


def job(root: Path, task_id: str = "t1", **changes: Any) -> StageJob:
    task = root / task_id
    directory = task / "attempts" / "1-1"
    directory.mkdir(parents=True, exist_ok=True)
    spec = {"taskType": "inference", "data": {"items": [f"from {task_id}"]}}
    request = ExecutionRequest(task_id, task_id, "inference", "x:Y", spec, str(task), str(directory))
    return StageJob(request=request, executor=ExecutorRef("x:Y"), resources=ResourceRequest(), **changes)


def result_of(found: Any) -> Any:
    return json.loads(Path(found.path).read_text())


def worker(url: str, worker_id: str = "w-a", **options: Any) -> OriginalWorker:
    return OriginalWorker(url=url, worker_id=worker_id, **options)


def ignore(_: Any) -> None:
    return None


@pytest.mark.parametrize("generation", ["first", "later"])
async def test_tasks_run_at_workers_of_both_generations(valkey: str, tmp_path: Path, generation: Any) -> None:
    async with dispatcher(valkey, tmp_path) as here:
        options = {"generation": generation, "results": tmp_path, "delay": 0.05}
        async with (
            OriginalWorker(url=valkey, **options) as a,
            OriginalWorker(url=valkey, worker_id="w-b", **options) as b,
        ):
            jobs = [job(tmp_path, f"t{i}") for i in range(6)]
            found = await asyncio.gather(*(here.dispatch(one, on_event=ignore) for one in jobs))
    assert [result_of(one) for one in found] == [outcome(one.request.spec) for one in jobs]
    assert len(a.got) + len(b.got) == 6
    assert a.got
    assert b.got
    assert all(one.delivered for one in found)


async def test_a_failure_goes_to_the_other_worker(valkey: str, tmp_path: Path) -> None:
    async with dispatcher(valkey, tmp_path) as here:
        options = {"results": tmp_path, "delay": 0.05, "fail": ["CUDA out of memory"]}
        async with worker(valkey, "w-a", **options), worker(valkey, "w-b", **options) as b:
            b.fail = []
            for attempt in range(2):
                try:
                    found = await here.dispatch(job(tmp_path), on_event=ignore)
                    break
                except ExecutionError as error:
                    assert error.message == "CUDA out of memory"
                    assert attempt == 0
    assert found.summary["worker"] == "w-b"


async def test_a_worker_that_registers_before_it_listens_gets_the_task(valkey: str, tmp_path: Path) -> None:
    late = worker(valkey, results=tmp_path, delay=0.05, deaf=1.0)
    async with dispatcher(valkey, tmp_path) as here, late:
        found = await asyncio.wait_for(here.dispatch(job(tmp_path), on_event=ignore), FACT_SECONDS)
    assert result_of(found)["items"][0]["output"] == "echo:from t1"
    assert [message["task_id"] for message in late.got] == ["t1"]


async def test_a_killed_workers_task_is_done_by_another(valkey: str, tmp_path: Path) -> None:
    results = ("--results", str(tmp_path), "--heartbeat", "60", "--gpus", "a100")
    async with dispatcher(valkey, tmp_path) as here:
        with started_worker(valkey, "w-a", *results, "--delay", "60") as first:
            placed: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()

            def note(event: Any) -> None:
                if event.kind == "placed":
                    placed.put_nowait((event.data["worker"], event.data["begun"]))

            running = asyncio.create_task(here.dispatch(job(tmp_path), on_event=note))
            assert await asyncio.wait_for(placed.get(), FACT_SECONDS) == ("w-a", False)
            async with worker(valkey, "w-b", results=tmp_path, delay=0.05):
                assert await asyncio.wait_for(placed.get(), FACT_SECONDS) == ("w-a", True)
                first.kill()
                await expire(valkey, "w-a")
                assert await asyncio.wait_for(placed.get(), FACT_SECONDS) == ("w-b", False)
                found = await asyncio.wait_for(running, FACT_SECONDS)
    assert found.summary["worker"] == "w-b"


async def test_two_coordinators_share_workers_without_sending_two_tasks_to_one(valkey: str, tmp_path: Path) -> None:
    async with dispatcher(valkey, tmp_path) as here, dispatcher(valkey, tmp_path) as there:
        options = {"results": tmp_path, "delay": 0.05}
        async with (
            OriginalWorker(url=valkey, **options) as a,
            OriginalWorker(url=valkey, worker_id="w-b", **options) as b,
        ):
            jobs = [job(tmp_path, f"t{i}") for i in range(16)]
            places = [(here, there)[i % 2].dispatch(one, on_event=ignore) for i, one in enumerate(jobs)]
            await asyncio.wait_for(asyncio.gather(*places), FACT_SECONDS)
            sent = [message["task_id"] for message in (*a.got, *b.got)]
    assert sorted(sent) == sorted(f"t{i}" for i in range(16))


async def test_a_cancelled_task_leaves_its_worker_to_others_when_it_ends(valkey: str, tmp_path: Path) -> None:
    only = worker(valkey, results=tmp_path, delay=1.0)
    async with dispatcher(valkey, tmp_path) as here, only:
        first = asyncio.create_task(here.dispatch(job(tmp_path), on_event=ignore))
        while not only.got:
            await asyncio.sleep(0.02)
        first.cancel()
        await asyncio.wait_for(here.dispatch(job(tmp_path, "t2"), on_event=ignore), FACT_SECONDS)
    assert datetime.fromisoformat(only.got[1]["dispatched_at"]) >= only.ended[0]
    assert [message["task_id"] for message in only.got] == ["t1", "t2"]
