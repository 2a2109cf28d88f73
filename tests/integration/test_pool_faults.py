"""What is lost and what is not: cancelled, killed, stopped and restarted parts of a pool."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from mloc_prefect.prefect_ext.server.embedded import EmbeddedServer
from mloc_prefect.process.supervisor import MARK
from tests.support.counts import count
from tests.support.patience import STOP_SECONDS
from tests.support.pool import SHORT_TTL, Pool, ended, rows, spec, until
from tests.support.server import prepare_home, start
from tests.support.tiny_model import save_tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.pool import Worker

GPU = {"count": 1, "type": "a100"}
ROWS = 12
STAGES = (rows(ROWS, 0.08),) * 3


class Bench(Pool):
    """A pool whose server a test may restart."""

    def __init__(self, root: Path) -> None:
        prepare_home(root)
        self.server = EmbeddedServer(root, 24680)
        super().__init__(root, start(self.server).api_url)

    def restart_server(self, *, away: float) -> None:
        """End the server, and start it again on its port after `away` seconds."""
        port = int(self.api_url.split(":")[2].split("/")[0])
        self.server.stop_now()
        time.sleep(away)
        self.server = EmbeddedServer(self.root, port, exact=True)
        assert start(self.server).api_url == self.api_url


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    found = Bench(tmp_path_factory.mktemp("faults"))
    try:
        yield found
    finally:
        found.close()
        found.server.stop_now()


@pytest.fixture(autouse=True)
def no_worker_stays(bench: Bench) -> Iterator[None]:
    """End what a failed test has left: its workers would take the runs of the next one."""
    yield
    bench.close()


@pytest.fixture
def one(bench: Bench) -> Iterator[Worker]:
    """A worker with one card, in a pool of its own for the test's length."""
    worker = bench.worker(f"one-{random.getrandbits(20):05x}", gpus=["a100:80GiB"])
    yield worker
    if worker.process.poll() is None:
        worker.stop()


def executors(bench: Bench) -> list[psutil.Process]:
    """Return the processes of hosts of this bench, and theirs."""
    found = []
    for process in psutil.process_iter():
        try:
            env = process.environ()
        except psutil.Error:
            continue
        if MARK in env and str(bench.root) in env.get("MLOC_HOME", "") and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def check(bench: Bench, run: str, *, once: bool = True) -> None:
    """Check that a run of `STAGES` has the results of an undisturbed one, and computed no row twice, if `once`."""
    done = bench.api.wait(run, "COMPLETED", "FAILED", "CANCELLED")  # CRASHED is not the end
    assert done["state"]["type"] == "COMPLETED", done["state"]
    expected = [f"row {index}" for index in range(ROWS)]
    for task_id in bench.task_ids(run).values():
        assert [item["output"] for item in bench.result(task_id)["items"]] == expected
        lines = [
            row["index"] for path in (bench.results / task_id).glob("attempts/*/items.jsonl") for row in read(path)
        ]
        assert sorted(lines if once else set(lines)) == list(range(ROWS))


def read(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a journal of rows; a torn last one was never finished."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


@pytest.mark.counted
def test_a_cancelled_run_leaves_nothing_but_what_was_done(bench: Bench):
    """At random moments of a job of three stages. What stays warm between stages leaves by its idle time, 1 s here."""
    one = bench.worker("brief", gpus=["b200:80GiB"], MLOC_HOST_IDLE_SECONDS="1")
    rounds, slowest = count("cancel", 3, 20), 0.0
    states = []
    for number in range(rounds):
        job = spec(f"cancel-{number}", *STAGES, gpu={"count": 1, "type": "b200"})
        run = bench.submit(job, submission_id=f"cancel-{number}")
        time.sleep(random.uniform(0, 4))
        began = time.monotonic()
        bench.api.post(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})

        def gone(run: str = run) -> bool:
            return ended(bench.api.run(run)) and not one.leases and not executors(bench)

        until(gone, why=lambda: [bench.story(run), *(p.cmdline() for p in executors(bench))])  # noqa: B023
        slowest = max(slowest, time.monotonic() - began)
        states.append(bench.api.run(run)["state"]["type"])

        def below(run: str = run) -> set[str]:
            runs = [*bench.api.stages(run).values(), *bench.runs(run).values()]
            return {one["state"]["type"] for one in runs}

        until(lambda: below() <= {"CANCELLED", "COMPLETED"}, why=below)
        check(bench, bench.submit(job, submission_id=f"cancel-{number}"))  # goes on with what was done
    print(
        f"cancelled {states.count('CANCELLED')} of {rounds}, the others had ended; all was gone after {slowest:.1f} s"
    )
    assert set(states) <= {"CANCELLED", "COMPLETED"}
    one.stop()


def test_a_single_stage_is_cancelled_alone(bench: Bench, one: Worker):
    run = bench.submit(spec("single", rows(ROWS, 0.01), {"echo": {"delay": 300}}, rows(ROWS, 0.01), gpu=GPU))
    stage = until(lambda: bench.api.stages(run).get("single:s2"))
    until(lambda: "single:s2" in one.holders)
    bench.api.post(f"/flow_runs/{stage['id']}/set_state", {"state": {"type": "CANCELLING"}})
    until(lambda: not executors(bench))  # its warm executor has left at once: the card is free
    done = bench.api.wait(run)
    states = {name: stage["state"]["type"] for name, stage in bench.api.stages(run).items()}
    assert states == {"single:s1": "COMPLETED", "single:s2": "CANCELLED", "single:s3": "CANCELLED"}
    assert done["state"]["type"] == "CANCELLED"
    until(lambda: one.leases == [])


def test_a_queued_stage_that_is_cancelled_never_starts(bench: Bench, one: Worker):
    busy = bench.submit(spec("busy", gpu=GPU, echo={"delay": 300}))
    until(lambda: one.holders == ["busy"])
    run = bench.submit(spec("queued", gpu=GPU))
    attempt = next(iter(until(lambda: bench.runs(run)).values()))
    for flow_run in (run, busy):
        bench.api.post(f"/flow_runs/{flow_run}/set_state", {"state": {"type": "CANCELLING"}})
        assert bench.api.wait(flow_run)["state"]["type"] == "CANCELLED"
    left = bench.api.run(attempt["id"])
    assert (left["state"]["type"], left["run_count"]) == ("CANCELLED", 0)


def test_light_stages_keep_to_the_limit_and_hold_nobody_up(bench: Bench):
    """One spec more than the only worker has slots: a stage without one waits on the pool, and gets its turn."""
    narrow = bench.worker("narrow", options={"limit": 2})
    busy = [bench.submit(spec(f"light-{n}", {"echo": {"delay": 300}}, rows(2, 0.01))) for n in range(2)]
    for number, run in enumerate(busy):
        stage = until(lambda: bench.api.stages(run).get(f"light-{number}:s1"), why=lambda: bench.story(run))  # noqa: B023
        bench.api.wait(stage["id"], "RUNNING")
    third = bench.submit(spec("light-2", rows(2, 0.01), rows(2, 0.01)))
    attempt = until(lambda: bench.runs(third).get("light-2:s1 (1-1)"), why=lambda: bench.story(third))
    assert attempt["state"]["type"] == "SCHEDULED"
    bench.api.post(f"/flow_runs/{busy[0]}/set_state", {"state": {"type": "CANCELLING"}})
    assert bench.api.wait(third)["state"]["type"] == "COMPLETED", bench.story(third)
    assert bench.api.run(busy[1])["state"]["type"] == "RUNNING"
    bench.api.post(f"/flow_runs/{busy[1]}/set_state", {"state": {"type": "CANCELLING"}})
    for run in busy:
        assert bench.api.wait(run)["state"]["type"] == "CANCELLED", bench.story(run)
        assert bench.runs(run) == {}, "they had the slots of their worker"
    narrow.stop()


@pytest.mark.counted
def test_killed_workers_cost_nothing_that_was_done(bench: Bench):
    """At random moments of a job of three stages, the only worker with their card; another finds out."""
    watcher = bench.worker("watcher")
    rounds, hit = count("kill", 3, 20), 0
    victim = bench.worker("victim-0", gpus=["h100:80GiB"])
    for number in range(rounds):
        run = bench.submit(spec(f"kill-{number}", *STAGES, gpu={"count": 1, "type": "h100"}))
        time.sleep(random.uniform(0, 4))
        children = psutil.Process(victim.process.pid).children(recursive=True)
        victim.kill()
        victim = bench.worker(f"victim-{number + 1}", gpus=["h100:80GiB"])
        check(bench, run)
        states = bench.states(run)  # one that was killed before it had begun counts as no start
        assert states.count("AwaitingRetry") == states.count("Pending") - 1, bench.story(run)
        hit += "was lost" in bench.story(run).partition("\n---")[0]  # without the logs
        assert psutil.wait_procs(children, timeout=STOP_SECONDS)[1] == []
        until(lambda: not victim.leases)  # noqa: B023
    until(lambda: bench.active() == [], why=bench.active)

    def cards() -> list[str]:
        names = [variable["name"] for variable in bench.api.post("/variables/filter")]
        return [name for name in names if "victim" in name and "worker" in name]

    until(lambda: len(cards()) == 1, why=cards)  # those of the dead are gone
    print(f"killed {rounds} workers, {hit} of them at work; each job has the results of an undisturbed run")
    assert hit or rounds < 10
    for worker in (watcher, victim):
        worker.stop()


def test_a_training_goes_on_from_its_last_checkpoint_on_another_worker(bench: Bench, tmp_path: Path):
    steps = 300
    training = {"batch_size": 2, "max_steps": steps, "save_steps": 10, "logging_steps": 1, "save_archive": False}
    data = {"prompts": [f"say {number}: yes" for number in range(8)]}
    model = {"source": {"identifier": str(save_tiny_model(tmp_path / "tiny"))}}
    body = {"taskType": "sft", "model": model, "data": data, "training": training}
    first = bench.worker("trainer-1", gpus=["l40s:48GiB"], OMP_NUM_THREADS="1", MLOC_DATA_ROOTS=str(tmp_path))
    run = bench.submit(spec("train", gpu={"count": 1, "type": "l40s"}, **body))
    saved = lambda: len(list(bench.results.glob("*/checkpoints/checkpoint-*0"))) > 1  # noqa: E731 - the first is whole
    until(saved, why=lambda: bench.story(run))
    first.kill()
    second = bench.worker("trainer-2", gpus=["l40s:48GiB"], OMP_NUM_THREADS="1", MLOC_DATA_ROOTS=str(tmp_path))
    done = bench.api.wait(run, "COMPLETED", "FAILED", "CANCELLED")
    assert done["state"]["type"] == "COMPLETED", bench.story(run)
    (task_id,) = bench.task_ids(run).values()
    result = bench.result(task_id)
    assert 0 < result["resumed_from_step"] < steps
    assert result["steps"] == steps
    second.stop()


def test_a_restarted_server_finds_its_worker_at_work(bench: Bench, one: Worker):
    run = bench.submit(spec("restart", rows(ROWS, 0.5), gpu=GPU))
    hosts = until(lambda: [process.pid for process in executors(bench)])
    bench.restart_server(away=3)
    check(bench, run)
    assert bench.api.run(run)["run_count"] == 1
    assert set(hosts) <= {process.pid for process in executors(bench)}
    check(bench, bench.submit(spec("after", rows(ROWS, 0.01), gpu=GPU)))


@pytest.mark.parametrize("light", [True, False])
def test_a_server_that_is_away_for_longer_than_clients_try_costs_nothing(bench: Bench, *, light: bool):
    """A stage ends meanwhile: its result waits, and the stage after it."""
    kind = "gh100" if light else "gh200"
    patient = {"PREFECT_CLIENT_MAX_RETRIES": "1", "MLOC_HEARTBEAT_TTL": "60"}
    worker = bench.worker(f"patient-{kind}", gpus=[f"{kind}:80GiB"], **patient)
    gpu = None if light else {"count": 1, "type": kind}
    run = bench.submit(spec(f"away-{kind}", rows(4, 0.5), rows(2, 0.01), gpu=gpu))
    until(lambda: executors(bench))
    bench.restart_server(away=7)  # the stage ends after two seconds, and a client tries again once, after two more
    done = bench.api.wait(run)
    assert done["state"]["type"] == "COMPLETED", bench.story(run)
    assert done["run_count"] == 1
    states = [stage["state"]["type"] for stage in bench.api.stages(run).values()]
    assert states == ["COMPLETED"] * 2
    for task_id in bench.task_ids(run).values():
        assert [path.name for path in (bench.results / task_id / "attempts").iterdir()] == ["1-1"]
    worker.stop()


@pytest.mark.counted
@pytest.mark.parametrize("alone", [True, False])
def test_restarts_of_workers_cost_neither_starts_nor_retries(bench: Bench, *, alone: bool):
    """More clean restarts than there are retries: of the worker of a whole run, and of one that has its stage only."""
    kind = "mi100" if alone else "mi200"
    roots = None if alone else bench.worker("roots", options={"queues": ["coordinator"]})
    restarts = count("worker-restarts", 3, 5)
    total = 12 * restarts
    job = spec(f"upgrades-{kind}", rows(total, 0.3), gpu={"count": 1, "type": kind})
    run = "" if alone else bench.submit(job)  # before there is another worker that may take it
    for number in range(restarts):
        only = bench.worker(
            f"node-{kind}-{number}", gpus=[f"{kind}:80GiB"], MLOC_MAX_RETRIES="1", MLOC_DRAIN_SECONDS="0"
        )
        run = run or bench.submit(job)
        until(lambda: only.leases, why=lambda: bench.story(run))  # noqa: B023
        assert only.stop() == 0, only.text()
    last = bench.worker(f"node-{kind}-last", gpus=[f"{kind}:80GiB"])
    done = bench.api.wait(run, "COMPLETED", "FAILED", "CANCELLED")
    assert done["state"]["type"] == "COMPLETED", bench.story(run)
    assert done["run_count"] == (restarts + 1 if alone else 1), bench.story(run)
    (task_id,) = bench.task_ids(run).values()
    lines = [row["index"] for path in (bench.results / task_id).glob("attempts/*/items.jsonl") for row in read(path)]
    assert sorted(lines) == list(range(total))
    for worker in filter(None, (roots, last)):
        worker.stop()


def test_a_worker_that_was_stopped_and_replaced_changes_nothing(bench: Bench, one: Worker):
    """SIGSTOP for longer than its time to live: another takes over; continued, it drops what it had and goes on."""
    slow = bench.worker("slow", gpus=["h100:80GiB"], MLOC_HEARTBEAT_TTL=SHORT_TTL)
    run = bench.submit(spec("paused", rows(ROWS, 0.4), gpu={"count": 1, "type": "h100"}))
    # Paused before it has the run, it loses nothing that others could take over.
    until(lambda: slow.leases and "Beginning" in slow.text(), why=lambda: bench.story(run))
    family = [slow.process.pid, *(c.pid for c in psutil.Process(slow.process.pid).children(recursive=True))]
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    other = bench.worker("other", gpus=["h100:80GiB"], MLOC_HEARTBEAT_TTL=SHORT_TTL)
    until(lambda: other.leases, why=lambda: bench.story(run))
    for pid in family:
        os.kill(pid, signal.SIGCONT)
    # Until it hears that it was given up, the continued executor may write rows of its own attempt, which nobody reads.
    check(bench, run, once=False)
    until(lambda: "was declared lost" in slow.text(), why=slow.text)
    history = bench.states(run)
    assert history[-1] == "Completed"
    assert history.count("Completed") == 1
    other.stop()
    again = bench.submit(spec("again", gpu={"count": 1, "type": "h100"}))
    assert bench.api.wait(again)["state"]["type"] == "COMPLETED"
    until(lambda: not slow.leases)
    slow.stop()
