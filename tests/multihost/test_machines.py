"""A server on one machine, workers on two others, results on a shared directory."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from mloc_prefect.cluster.worker_card import WorkerCard
from mloc_prefect.prefect_ext.server.embedded import EmbeddedServer
from tests.multihost.net import Network
from tests.support.counts import count
from tests.support.pool import SHORT_TTL, Pool, ended, rows, spec, until
from tests.support.server import prepare_home, start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.pool import Worker

GPU = {"count": 1, "type": "a100"}
ROWS = 30
_BEATS = 4  # until every worker has read of every other, which it does at each of its beats
CUT_SECONDS = count("link_cut_seconds", 7, 30)  # well above the time to live of a worker's card, 4 s


class Machines(Pool):
    """A server machine, and `east` and `west` with a worker each."""

    def __init__(self, root: Path, network: Network) -> None:
        prepare_home(root)
        self.network = network
        self.server = EmbeddedServer(root, 24700, host=network.address("server"))
        address = network.on("server", lambda: start(self.server))
        super().__init__(root, address.api_url)

    def start_on(self, machine: str, **more: Any) -> Worker:
        """Start a worker on a machine, named after it."""
        more = {"MLOC_HEARTBEAT_TTL": SHORT_TTL, **more}
        return self.network.on(machine, lambda: self.worker(machine, gpus=["a100:80GiB"], **more))

    def known(self) -> list[str]:
        """Return the names of the cards of all workers that are there."""
        return sorted(self.beats())

    def beats(self) -> dict[str, int]:
        """Return the number of the last heartbeat of each worker."""
        variables = [one for one in self.api.post("/variables/filter") if "worker" in one["name"]]
        return {one["name"]: WorkerCard.from_json(one["value"]).beat for one in variables}

    def wait_known(self) -> None:
        """Wait until every worker knows of every other."""
        before = self.beats()

        def read() -> bool:
            now = self.beats()
            return all(now.get(name, 0) >= beat + _BEATS for name, beat in before.items())

        until(read, why=lambda: (before, self.beats()))

    def rows_of(self, run: str) -> int:
        """Return how many rows of an undivided run are finished."""
        files = [
            file for t in self.task_ids(run).values() for file in (self.results / t).glob("attempts/*/items.jsonl")
        ]
        return sum(len(file.read_text().splitlines()) for file in files)

    def journals(self, run: str, *, lines: int) -> int:
        """Return how many shards of a run's only stage have finished so many rows."""
        found = 0
        for task_id in self.task_ids(run).values():
            plan = self.results / task_id / "attempts" / "shards.json"
            for shard in json.loads(plan.read_text())["task_ids"] if plan.exists() else ():
                files = (self.results / shard).glob("attempts/*/items.jsonl")
                found += sum(len(file.read_text().splitlines()) for file in files) >= lines
        return found


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    with Network("server", "east", "west") as network:
        found = Machines(tmp_path_factory.mktemp("machines"), network)
        try:
            yield found
        finally:
            found.close()
            found.server.stop_now()


@pytest.fixture(scope="module")
def east(machines: Machines) -> Worker:
    return machines.start_on("east")


@pytest.fixture(scope="module")
def west(machines: Machines) -> Worker:
    return machines.start_on("west")


def finish(machines: Machines, run: str) -> None:
    # A crashed run is started again by another worker, so that state is no end here.
    done = machines.api.wait(run, "COMPLETED", "FAILED", "CANCELLED")
    assert done["state"]["type"] == "COMPLETED", machines.story(run)


def outputs(machines: Machines, run: str) -> list[Any]:
    (task_id,) = machines.task_ids(run).values()
    found = machines.result(task_id)
    found = found.get("result", found)
    return [item["output"] for item in found.get("merged", found)["items"]]


def files_of(machines: Machines, task_id: str) -> dict[str, str]:
    """Return the hashes of all committed files of a task."""
    directory = machines.results / task_id
    committed = [p for p in directory.rglob("*") if p.is_file() and not {"attempts", "logs"} & set(p.parts)]
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in committed}


def holder(east: Worker, west: Worker) -> Worker | None:
    """Return the worker that has a lease."""
    return next((worker for worker in (east, west) if worker.leases), None)


def family(worker: Worker) -> list[int]:
    return [worker.process.pid, *(c.pid for c in psutil.Process(worker.process.pid).children(recursive=True))]


def test_machines_see_each_other_only_through_their_links(machines: Machines, east: Worker, west: Worker) -> None:
    network = machines.network
    until(lambda: network.on("east", lambda: _connects(network.address("server"), 24700)))
    with network.cut("east"):
        assert not network.on("east", lambda: _connects(network.address("server"), 24700))
        until(lambda: network.on("west", lambda: _connects(network.address("server"), 24700)))
    until(lambda: network.on("east", lambda: _connects(network.address("server"), 24700)))
    until(lambda: machines.known() == ["mloc_worker_east", "mloc_worker_west"], why=machines.known)


def test_one_task_is_divided_over_both_machines(machines: Machines, east: Worker, west: Worker) -> None:
    machines.wait_known()
    parallel = {"parallel": {"enabled": True, "max_shards": 2}}
    run = machines.submit(spec("divided", gpu=GPU, **rows(ROWS, 0.15), **parallel))
    until(lambda: east.leases and west.leases, why=lambda: machines.story(run))
    finish(machines, run)
    (task_id,) = machines.task_ids(run).values()
    found = machines.result(task_id)["result"]
    assert {shard["worker_id"] for shard in found["shards"]} == {"east", "west"}
    runs = {name: shard["state"]["type"] for name, shard in machines.runs(run).items()}
    assert runs == runs | {"divided [1/2]": "COMPLETED", "divided [2/2]": "COMPLETED"}
    assert len(runs) == 3, "and the attempt at the shard that is not where its stage is"
    assert [item["output"] for item in found["merged"]["items"]] == [f"row {i}" for i in range(ROWS)]
    assert [item["index"] for item in found["merged"]["items"]] == list(range(ROWS))


def test_a_shard_of_a_machine_without_power_goes_on_alone_on_the_other(
    machines: Machines, east: Worker, west: Worker
) -> None:
    """The worker goes with all of its processes at once; `east` and `west` only have the run itself."""
    one, two = (
        machines.network.on(place, lambda: machines.worker(f"{place}-h100", gpus=["h100:80GiB"]))  # noqa: B023
        for place in ("east", "west")
    )
    machines.wait_known()
    parallel = {"parallel": {"enabled": True, "max_shards": 2}}
    run = machines.submit(spec("powerless", gpu={"count": 1, "type": "h100"}, **rows(ROWS, 0.3), **parallel))
    until(lambda: machines.journals(run, lines=2) == 2, why=lambda: machines.story(run))
    for pid in family(one):
        os.kill(pid, signal.SIGKILL)
    finish(machines, run)
    (task_id,) = machines.task_ids(run).values()
    found = machines.result(task_id)["result"]
    assert [item["output"] for item in found["merged"]["items"]] == [f"row {i}" for i in range(ROWS)]
    assert [shard["worker_id"] for shard in found["shards"]] == ["west-h100"] * 2
    places = [machines.results / shard["task_id"] / "attempts" for shard in found["shards"]]
    assert sorted(len(list(place.glob("*-*"))) for place in places) == [1, 2]
    assert sum(len(file.read_text().splitlines()) for p in places for file in p.glob("*/items.jsonl")) == ROWS
    two.stop()


@pytest.mark.counted
def test_a_link_that_was_cut_and_restored_costs_nothing_that_was_done(
    machines: Machines, east: Worker, west: Worker
) -> None:
    run = machines.submit(spec("cut", gpu=GPU, **rows(ROWS, 0.4)))
    lost = until(lambda: holder(east, west), why=lambda: machines.story(run))
    with machines.network.cut(lost.name):
        began = time.monotonic()
        other = west if lost is east else east
        until(lambda: other.leases or ended(machines.api.run(run)), why=lambda: machines.story(run))
        time.sleep(max(0.0, began + CUT_SECONDS - time.monotonic()))
    finish(machines, run)
    assert outputs(machines, run) == [f"row {i}" for i in range(ROWS)]
    states = [s["name"] for s in machines.api.get(f"/flow_run_states/?flow_run_id={run}")]
    assert states.count("Completed") == 1
    until(lambda: not east.leases and not west.leases, why=lambda: (east.leases, west.leases))
    until(lambda: machines.known() == ["mloc_worker_east", "mloc_worker_west"], why=lost.text)
    machines.wait_known()
    after = machines.submit(spec("after-cut", gpu=GPU, parallel={"enabled": True, "max_shards": 2}, **rows(ROWS, 0.15)))
    finish(machines, after)
    (task_id,) = machines.task_ids(after).values()
    shards = machines.result(task_id)["result"]["shards"]
    assert {shard["worker_id"] for shard in shards} == {"east", "west"}  # it is back
    print(f"the link of {lost.name} was cut for {CUT_SECONDS} s")


def test_late_writes_of_a_machine_that_was_paused_and_replaced_change_nothing(
    machines: Machines, east: Worker, west: Worker
) -> None:
    run = machines.submit(spec("paused", gpu=GPU, **rows(ROWS, 0.3)))
    until(lambda: machines.rows_of(run) >= 3, why=lambda: machines.story(run))
    slow = holder(east, west)
    assert slow is not None
    paused = family(slow)
    for pid in paused:
        os.kill(pid, signal.SIGSTOP)
    finish(machines, run)
    (task_id,) = machines.task_ids(run).values()
    committed = files_of(machines, task_id)
    assert {"responses.json", "manifest.json"} <= set(committed)
    for pid in paused:
        os.kill(pid, signal.SIGCONT)
    until(lambda: "was declared lost" in slow.text(), why=slow.text)
    until(lambda: not slow.leases, why=lambda: slow.leases)
    assert files_of(machines, task_id) == committed
    assert outputs(machines, run) == [f"row {i}" for i in range(ROWS)]
    assert machines.api.run(run)["state"]["type"] == "COMPLETED"
    journals = list((machines.results / task_id).glob("attempts/*/items.jsonl"))
    finished = [json.loads(line)["index"] for file in journals for line in file.read_text().splitlines()]
    assert set(finished) == set(range(ROWS))
    assert len(finished) <= ROWS + 10  # what was at work when everything stood still, until it hears; not all the rest


def _connects(host: str, port: int) -> bool:
    import socket

    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True
