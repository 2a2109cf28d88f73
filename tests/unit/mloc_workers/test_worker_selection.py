"""Which worker of the original protocol gets a task."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.mloc_workers.mloc_dispatcher import MlocDispatcher
from mloc_prefect.mloc_workers.worker_selection import choose_worker
from mloc_prefect.plan.resources import ResourceRequest
from mloc_prefect.settings import get_settings
from mloc_prefect.store.backends import memory_stores
from mloc_prefect.store.interfaces import TASKS
from mloc_prefect.store.records import WorkerRecord
from tests.support.original_worker import hardware

if TYPE_CHECKING:
    pass
from tests.support.mloc_site import job, worker

GIB = 1 << 30


def names(choice: Any) -> list[str]:
    return [record.worker_id for record in choice.ready]


def test_only_live_idle_fitting_workers_of_the_original_protocol_are_chosen() -> None:
    workers = [
        worker("ours", protocol="ours"),
        worker("stale", stale=True),
        worker("off", elastic_disabled=True),
        worker("starting", status="STARTING"),
        worker("running", status="RUNNING"),
        worker("small", hardware=hardware(cores=1)),
        worker("taken"),
        worker("good"),
    ]
    assert names(choose_worker(workers, ResourceRequest(cpus=2), engaged={"taken"})) == ["good"]


def test_gpus_are_matched_by_name_count_and_by_memory_where_it_is_known() -> None:
    first = worker("first", hardware=hardware(gpus=("NVIDIA A100-SXM4-80GB",)))
    later = worker("later", hardware=hardware(gpus=("NVIDIA A100", "NVIDIA A100"), gpu_memory=40 * GIB))
    assert names(choose_worker([first, later], ResourceRequest(gpu_count=1, gpu_type="a100"))) == ["later", "first"]
    assert names(choose_worker([first, later], ResourceRequest(gpu_count=2))) == ["later"]
    assert names(choose_worker([first, later], ResourceRequest(gpu_count=1, gpu_memory_bytes=80 * GIB))) == ["first"]
    assert names(choose_worker([first, later], ResourceRequest(gpu_count=1, gpu_type="h100"))) == []


def test_the_best_worker_comes_first_while_there_are_enough() -> None:
    workers = [
        worker("cpu"),
        worker("big", hardware=hardware(cores=64)),
        worker("gpu", hardware=hardware(gpus=("l4",))),
    ]
    assert names(choose_worker(workers, ResourceRequest())) == ["gpu", "big", "cpu"]
    assert names(choose_worker(workers, ResourceRequest(), demand=10)) == ["cpu", "big", "gpu"]


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, "gpu"),
        ({"LOW_AVAIL_RATIO": "1.6"}, "cpu"),  # the two count 1.6
        ({"LOW_AVAIL_RATIO": "1.6", "GPU_WEIGHT": "1.1"}, "gpu"),
        ({"LOW_AVAIL_RATIO": "1.6", "CPU_ONLY_WEIGHT": "0.7"}, "gpu"),
        ({"CPU_ONLY_WEIGHT": "0", "GPU_WEIGHT": "0"}, "cpu"),
    ],
)
async def test_the_site_says_when_the_best_worker_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], first: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stores = memory_stores()
    dispatcher = MlocDispatcher.of(stores, get_settings())
    for one in (worker("cpu"), worker("gpu", hardware=hardware(gpus=("l4",)))):
        await stores.workers.register(one, ttl=60)
    assert names(await dispatcher.choice(ResourceRequest()))[0] == first
    waiting = asyncio.create_task(dispatcher.dispatch(job(tmp_path), on_event=lambda _: None))
    async with asyncio.timeout(5):
        while not (told := [m["assigned_worker"] for name, m in stores.publisher.sent if name == TASKS]):  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)
    assert told[0] == first
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await dispatcher.close()


def test_a_worker_that_failed_comes_last_but_stays() -> None:
    workers = [worker("a", hardware=hardware(cores=64)), worker("b")]
    assert names(choose_worker(workers, ResourceRequest(), avoid={"a"})) == ["b", "a"]
    assert names(choose_worker(workers[:1], ResourceRequest(), avoid={"a"})) == ["a"]


@pytest.mark.parametrize(
    ("workers", "text"),
    [
        ([], "needs 2 cpu; no MLOC worker is registered"),
        ([worker(stale=True)], "1 MLOC worker registered, none alive and switched on"),
        ([worker(hardware=hardware(cores=1))], "none fits (w-a: needs 2 cpu, this machine has 1 cpu)"),
        ([worker(status="RUNNING")], "1 MLOC worker fits: w-a is RUNNING"),
    ],
)
def test_why_none_is_ready_is_said_in_words(workers: list[WorkerRecord], text: str) -> None:
    assert text in choose_worker(workers, ResourceRequest(cpus=2)).why
