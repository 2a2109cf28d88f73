"""Placement on a pool of real worker processes with declared inventories."""

from __future__ import annotations

import json
import re
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.patience import FACT_SECONDS
from tests.support.pool import Pool, ended, graph, rows, spec, until
from tests.support.prefect_api import BIN, environment
from tests.support.server import embedded_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.pool import Worker

A100 = "a100:80GiB"
STOCK_POLL_SECONDS = 10.0  # of Prefect's own worker


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    root = tmp_path_factory.mktemp("pool")
    with embedded_server(root, port=24620) as url:
        found = Pool(root, url)
        try:
            yield found
        finally:
            found.close()


@pytest.fixture(scope="module")
def small(pool: Pool) -> Worker:
    """No GPU, two slots."""
    return pool.worker("small", options={"limit": 2})


@pytest.fixture(scope="module")
def duo(pool: Pool, small: Worker) -> Worker:
    """Two cards; a waiting task keeps what it needs after 2 s."""
    return pool.worker("duo", gpus=[A100, A100], MLOC_RESERVE_SECONDS="2", MLOC_USER_FLOWS="true")


def stage_of(pool: Pool, run: str) -> Any:
    """Return the only stage of a run, once it is there."""
    return next(iter(until(lambda: pool.api.stages(run)).values()))


def attempts(pool: Pool, task_id: str) -> list[Path]:
    return sorted((pool.results / task_id / "attempts").iterdir())


def finish(pool: Pool, *runs: str) -> None:
    for run in runs:
        done = pool.api.wait(run)
        assert done["state"]["type"] == "COMPLETED", done["state"]


def cancel(pool: Pool, *runs: str) -> None:
    for run in runs:
        pool.api.post(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    for run in runs:
        assert pool.api.wait(run)["state"]["type"] == "CANCELLED"


LONG = {"echo": {"delay": 300}}  # ended by cancellation, once the test has seen what it wants


def test_three_tasks_of_one_gpu_on_two(pool: Pool, duo: Worker):
    runs = {f"one-{n}": pool.submit(spec(f"one-{n}", gpu={"count": 1, "type": "a100"}, **LONG)) for n in range(3)}
    first = set(until(lambda: len(duo.leases) == 2 and duo.holders))
    assert sorted(device for entry in duo.leases for device in entry["devices"]) == ["gpu:0", "gpu:1"]
    (waiting,) = set(runs) - first
    attempt = next(iter(until(lambda: pool.runs(runs[waiting])).values()))
    assert attempt["state"]["type"] == "SCHEDULED"
    assert attempt["work_queue_name"] == "gpu-1-a100-c1-m64m"
    cancel(pool, runs[first.pop()])
    until(lambda: waiting in duo.holders)
    began = pool.api.wait(attempt["id"], "RUNNING")
    assert began["labels"]["prefect.worker.name"] == "duo"
    cancel(pool, runs[first.pop()], runs[waiting])
    until(lambda: duo.leases == [])


def test_a_type_that_only_a_late_worker_has(pool: Pool, duo: Worker):
    run = pool.submit(spec("late", gpu={"count": 1, "type": "h100", "memory": "80Gi"}))
    # What the test before has given back may not be known everywhere yet.
    why = re.compile(r"waiting: needs 1x h100 with 80 GiB; 2 workers online, largest free: (no gpu|[12]x a100 80 GiB)")
    attempt = next(iter(until(lambda: pool.runs(run)).values()))
    assert attempt["state"]["name"] == "Waiting"
    assert why.fullmatch(attempt["state"]["message"])
    logs = {"logs": {"flow_run_id": {"any_": [stage_of(pool, run)["id"]]}}}
    until(lambda: any(why.search(line["message"]) for line in pool.api.post("/logs/filter", logs)))
    late = pool.worker("late", gpus=["nvidia h100 80gb:80GiB"])
    finish(pool, run)
    assert next(iter(pool.runs(run).values()))["labels"]["prefect.worker.name"] == "late"
    late.stop()


def test_parts_of_one_card(pool: Pool, duo: Worker):
    """Tasks that state a part of a card's memory share cards; one that needs a whole card waits for it."""
    gpu = {"count": 1, "memory": "40Gi"}
    runs = [pool.submit(spec(f"part-{n}", gpu=gpu, **LONG)) for n in range(4)]
    until(lambda: len(duo.leases) == 4)
    assert sorted(device for entry in duo.leases for device in entry["devices"]) == ["gpu:0"] * 2 + ["gpu:1"] * 2
    whole = pool.submit(spec("whole", gpu={**gpu, "exclusive": True}))
    attempt = next(iter(until(lambda: pool.runs(whole)).values()))
    assert attempt["state"]["type"] == "SCHEDULED"
    cancel(pool, *runs)
    finish(pool, whole)


@pytest.mark.alone  # it has ten seconds, in which fifty others are looked at
def test_one_that_fits_does_not_wait_behind_fifty_that_do_not(pool: Pool, duo: Worker):
    nowhere = pool.submit(graph("nowhere", 50, gpu={"count": 16}))
    until(lambda: len(pool.runs(nowhere)) == 50)
    began = time.monotonic()
    fits = pool.submit(spec("fits", gpu={"count": 2}))
    until(lambda: duo.holders == ["fits"] or ended(pool.api.run(fits)), STOCK_POLL_SECONDS, duo.text)
    print(f"one that fits behind 50 that do not was placed after {time.monotonic() - began:.1f} s")
    finish(pool, fits)
    assert {run["state"]["type"] for run in pool.runs(nowhere).values()} == {"SCHEDULED"}
    cancel(pool, nowhere)
    assert {run["state"]["type"] for run in pool.runs(nowhere).values()} == {"CANCELLED"}


def test_large_tasks_do_not_starve(pool: Pool, duo: Worker):
    """Small tasks keep both cards busy, but never both idle: the large one gets its turn while they still come."""
    small = [pool.submit(spec(f"stream-{n}", gpu={"count": 1}, echo={"delay": 2})) for n in range(10)]
    until(lambda: len(duo.leases) == 2)
    large = pool.submit(spec("large", gpu={"count": 2}))
    finish(pool, large, *small)

    over = pool.api.run(large)["end_time"]
    left = [run for run in small if pool.api.run(run)["end_time"] > over]
    print(f"the task of two GPUs ended with {len(left)} of 10 small ones to go")
    assert left


def test_a_more_urgent_task_is_served_before_one_that_came_first(pool: Pool, small: Worker, duo: Worker):
    busy = pool.submit(spec("busy", gpu={"count": 2, "type": "a100"}, **LONG))
    until(lambda: duo.holders == ["busy"])
    waiting = {}
    try:
        for name, priority in (("first", 0), ("urgent", 5)):
            waiting[name] = pool.submit(spec(name, gpu={"count": 2, "type": "a100"}, priority=priority, **LONG))
            said = f"Flow run '{name}' - waiting:"  # both are known before there is room
            until(lambda: said in duo.text() + small.text())  # noqa: B023
        cancel(pool, busy)
        until(lambda: duo.holders == ["urgent"], why=duo.text)
    finally:  # else the tests that follow would find the cards taken
        cancel(pool, *waiting.values())


def shown(pool: Pool, worker: Worker) -> dict[str, Any]:
    """Return what `mloc workers` says of each."""
    command = [BIN / "mloc", "workers", "--json"]
    ended = subprocess.run(
        command,
        env=environment(worker.home, pool.api_url),
        capture_output=True,
        text=True,
        timeout=FACT_SECONDS,
        check=False,
    )
    return {worker["worker_id"]: worker for worker in json.loads(ended.stdout)}


def test_what_workers_hold_and_run_is_seen_without_an_endpoint(pool: Pool, duo: Worker):
    run = pool.submit(spec("seen", gpu={"count": 1, "type": "a100"}, **LONG))
    until(lambda: duo.holders == ["seen"])
    until(lambda: pool.api.http.get("/artifacts/mloc-workers/latest").is_success)
    page = until(lambda: "gpu:0: seen" in (text := pool.api.get("/artifacts/mloc-workers/latest")["data"]) and text)
    row = next(line for line in page.splitlines() if line.startswith("| duo "))
    assert "2x a100 80 GiB" in row
    found = shown(pool, duo)
    assert found["duo"]["at_work"]["leases"] == [{"holder": "seen", "devices": ["gpu:0"]}]
    assert not found["duo"]["stale"]
    # The worker of the workflow run says so with a heartbeat of its own.
    until(lambda: run in [name for worker in shown(pool, duo).values() for name in worker["at_work"]["runs"]])
    cancel(pool, run)


def shard_states(pool: Pool, run: str) -> set[str]:
    return {shard["state"]["type"] for shard in pool.runs(run).values()}


def test_each_shard_is_a_run(pool: Pool, duo: Worker):
    """Also one that is computed where its stage is; who cancels it cancels the task."""
    until(lambda: shown(pool, duo)["duo"]["at_work"]["leases"] == [])  # else a card less makes a shard less
    divided = {"parallel": {"enabled": True, "max_shards": 2}}
    run = pool.submit(spec("parts", gpu={"count": 1, "type": "a100"}, **rows(4, 0.2), **divided))
    finish(pool, run)
    shards = {name: run["state"] for name, run in pool.runs(run).items() if name.endswith("]")}
    assert {name: state["type"] for name, state in shards.items()} == {
        "parts [1/2]": "COMPLETED",
        "parts [2/2]": "COMPLETED",
    }
    until(lambda: shown(pool, duo)["duo"]["at_work"]["leases"] == [])
    run = pool.submit(spec("parts", gpu={"count": 1, "type": "a100"}, **rows(400, 1), **divided))
    until(lambda: len(duo.leases) == 2, why=lambda: pool.story(run))
    shard = pool.api.wait(until(lambda: pool.runs(run).get("parts [2/2]"))["id"], "RUNNING")
    pool.api.post(f"/flow_runs/{shard['id']}/set_state", {"state": {"type": "CANCELLING"}})
    assert pool.api.wait(run)["state"]["type"] == "CANCELLED", pool.story(run)
    assert stage_of(pool, run)["state"]["type"] == "CANCELLED"
    until(lambda: shard_states(pool, run) == {"CANCELLED"}, why=lambda: pool.story(run))
    until(lambda: shown(pool, duo)["duo"]["at_work"]["leases"] == [])
    run = pool.submit(spec("parts", gpu={"count": 1, "type": "a100"}, **rows(400, 1), **divided))
    until(lambda: pool.runs(run).get("parts [2/2]"), why=lambda: pool.story(run))
    pool.api.post(f"/flow_runs/{stage_of(pool, run)['id']}/set_state", {"state": {"type": "CANCELLING"}})
    assert pool.api.wait(run)["state"]["type"] == "CANCELLED", pool.story(run)
    until(lambda: shard_states(pool, run) == {"CANCELLED"}, why=lambda: pool.story(run))
    until(lambda: not duo.leases)


def test_coordinators_take_no_slots(pool: Pool, duo: Worker):
    """Five specs of two stages each whose stages run elsewhere: a limit of one run holds none of them up."""
    only = pool.worker("roots", options={"limit": 1, "queues": ["coordinator"]})
    two = [rows(3, 0.2), {"data": {"message": "${s1.result}"}}]
    runs = [pool.submit(spec(f"n{n}", *two, gpu={"count": 1, "type": "a100"})) for n in range(5)]
    finish(pool, *runs)
    assert {name for run in runs for name in pool.task_ids(run)} == {f"n{n}:s{s}" for n in range(5) for s in (1, 2)}
    only.stop()


def test_runs_that_two_workers_want_run_once(pool: Pool, small: Worker, duo: Worker):
    runs = [pool.submit(spec(f"race-{n}")) for n in range(10)]
    finish(pool, *runs)
    found = [pool.api.run(run) for run in runs]
    assert {run["run_count"] for run in found} == {1}
    took = {name: sum(run["labels"]["prefect.worker.name"] == name for run in found) for name in ("small", "duo")}
    print(f"taken: {took}")
    assert sum(took.values()) == 10
    for run in runs:
        (task_id,) = pool.task_ids(run).values()
        assert [path.name for path in attempts(pool, task_id)] == ["1-1"]


USER = """
import os, pathlib
from prefect import flow

@flow
def busy(target: str):
    while not pathlib.Path(target).with_suffix(".end").exists():
        sum(range(1000))
    pathlib.Path(target).write_text(" ".join(os.environ[name] for name in ("CUDA_VISIBLE_DEVICES", "MLOC_TEST_MARK")))
"""


def test_a_users_flow_beside_ours(pool: Pool, duo: Worker, tmp_path: Path):
    """A sync flow that computes, with a pull step and a GPU by its job variables: neither disturbs the other."""
    (tmp_path / "user.py").write_text(USER)
    deployment = pool.api.deploy(
        "user",
        entrypoint="user.py:busy",
        pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(tmp_path)}}],
        job_variables={"gpu_count": 1, "gpu_type": "a100", "env": {"MLOC_TEST_MARK": "set"}},
    )
    user = pool.api.start(deployment, target=str(tmp_path / "out"))
    pool.api.wait(user, "RUNNING")
    ((device,),) = [entry["devices"] for entry in duo.leases]
    ours = pool.submit(spec("ours", gpu={"count": 1}))
    finish(pool, ours)
    assert pool.api.run(user)["state"]["type"] == "RUNNING"
    (tmp_path / "out.end").touch()
    finish(pool, user)
    index, mark = (tmp_path / "out").read_text().split()
    assert (f"gpu:{index}", mark) == (device, "set")
    until(lambda: duo.leases == [])


def test_logs_of_warm_runs_reach_the_server(pool: Pool, duo: Worker):
    run = pool.submit(spec("logged", gpu={"count": 1}))
    finish(pool, run)
    ids = [run, stage_of(pool, run)["id"]]

    def messages() -> list[str]:
        return [line["message"] for line in pool.api.post("/logs/filter", {"logs": {"flow_run_id": {"any_": ids}}})]

    until(lambda: {"attempt 1 starts"} < set(messages()) and any("Beginning flow run" in m for m in messages()))
