"""Who has what, and what the registry shows of workers."""

from __future__ import annotations

from mloc_prefect.bridge.projector import Projector
from mloc_prefect.bridge.reconcile import Reconciler
from mloc_prefect.server.posted_results import complete
from mloc_prefect.store.records import WorkerRecord
from mloc_prefect.store.states import Phase, StatusMark
from tests.support.bridging import WORKER, BridgeBench, stage_event, state, view

OTHER = {**WORKER, "worker": "w-2"}


async def bench_with(*tasks: str) -> BridgeBench:
    """Return a bench with two workers of ours at which nothing runs, and these tasks."""
    bench = BridgeBench()
    for worker in ("w-1", "w-2"):
        record = WorkerRecord(worker_id=worker, status="IDLE", protocol="ours")
        await bench.stores.workers.register(record, ttl=60)
    await bench.submitted(*tasks)
    return bench


async def place(bench: BridgeBench, task: str = "t1", where: dict[str, str] = WORKER, attempt: int = 1) -> None:
    for what in ("placed", "started"):
        await bench.projector.apply(stage_event(what, attempt, task=task, run=f"run-{task}", **where))


async def shown(bench: BridgeBench) -> list[str]:
    return [worker.status for worker in await bench.stores.workers.list()]


async def post(bench: BridgeBench, task: str = "t1") -> None:
    await complete(bench.stores.tasks, task)
    assert (await bench.record(task)).status == "DONE"


async def test_registry_shows_workers_at_work_until_their_last_task_has_ended():
    bench = await bench_with("t1", "t2")
    for task in ("t1", "t2"):
        await place(bench, task)
    await bench.projector.end_task(view())
    assert await shown(bench) == ["RUNNING", "IDLE"]
    await bench.projector.end_task(view(run="run-t2", task="t2"))
    assert await shown(bench) == ["IDLE", "IDLE"]
    assert bench.messages[-1] == "STATUS IDLE"


async def test_the_run_of_a_posted_result_leaves_its_worker_at_its_end():
    bench = await bench_with("t1", "t2")
    for task in ("t1", "t2"):
        await place(bench, task)
    before = len(bench.messages)
    await post(bench)
    assert bench.messages[before:] == ["TASK_SUCCEEDED"], "whether its worker is idle now is not known to the endpoint"
    await bench.projector.end_task(view())
    assert bench.messages[before:] == ["TASK_SUCCEEDED", "STATUS RUNNING"]
    await post(bench, "t2")
    for _ in range(2):
        await bench.projector.apply(
            stage_event("failed", error="ended", final=False, task="t2", run="run-t2", **WORKER)
        )
    assert bench.messages[before + 2 :] == ["TASK_SUCCEEDED", "STATUS IDLE"], "once"
    assert await shown(bench) == ["IDLE", "IDLE"]
    assert (await bench.stores.workers.get("w-1")).last_task == "t2"


async def test_the_end_of_a_run_that_nobody_tells_of_leaves_no_worker_at_work():
    bench = await bench_with()
    await place(bench)
    await post(bench)
    await Reconciler(bench.stores.tasks, bench.projector, bench.runs, clock=lambda: 100.0).compare_once()
    assert (await shown(bench), bench.messages[-1]) == (["IDLE", "IDLE"], "STATUS IDLE")


async def test_what_ended_while_no_bridge_was_there_leaves_no_worker_at_work():
    bench = await bench_with("t1", "t2")
    await place(bench)
    await place(bench, "t2", OTHER)
    await post(bench)
    await Projector(bench.stores, bench.runs, bench.rebuilder).load()
    assert await shown(bench) == ["IDLE", "RUNNING"]


async def test_an_attempt_that_moves_without_a_failure_leaves_its_first_worker():
    bench = await bench_with("t1", "t2")
    await place(bench)
    before = len(bench.messages)
    await place(bench, where=OTHER, attempt=2)
    assert await shown(bench) == ["IDLE", "RUNNING"]
    assert "STATUS IDLE" in bench.messages[before:]
    await bench.projector.end_task(view())
    await place(bench, "t2")
    await bench.projector.end_task(view(run="run-t2", task="t2"))
    assert (await shown(bench), bench.messages[-1]) == (["IDLE", "IDLE"], "STATUS IDLE")


async def test_an_attempt_that_moves_to_an_original_worker_leaves_ours():
    bench = await bench_with()
    await place(bench)
    await place(bench, where={"worker": "o-1", "protocol": "original"}, attempt=2)
    assert await shown(bench) == ["IDLE", "IDLE"]


async def test_a_posted_result_of_a_divided_task_ends_its_parts():
    bench = await bench_with()
    await bench.projector.apply(stage_event("placed", worker="MULTI"))
    part = {"task_id": "p0", "index": 0, "total": 2}
    await bench.projector.apply(stage_event("shard", step="placed", part=part, part_attempt=1, **WORKER))
    assert await shown(bench) == ["RUNNING", "IDLE"]
    await post(bench)
    await bench.projector.apply(state("Completed"))
    assert ((await bench.record("p0")).mark, await shown(bench)) == (StatusMark(1, Phase.DONE), ["IDLE", "IDLE"])
