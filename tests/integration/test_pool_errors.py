"""Errors between a worker and its server: they cost neither the worker nor what it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mloc_prefect.prefect_ext.run_facts import STOPPED
from tests.support import pool as support
from tests.support.patience import STOP_SECONDS
from tests.support.pool import Pool, rows, spec, until
from tests.support.server import embedded_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.pool import Worker

# Each happens once, when a file of its name is put into the worker's state directory.
_FAULTS = """
import os, pathlib
import httpx
from prefect.client.orchestration import PrefectClient
from mloc_prefect.worker import own_runs
from mloc_prefect.worker.worker import MlocGpuWorker

own_runs._KEPT_SECONDS = 0.0  # each claim reads its deployment

def due(name):
    file = pathlib.Path(os.environ["MLOC_HOME"]) / name
    if not file.exists():
        return False
    file.unlink()
    return True

stock_read, stock_set, ours = PrefectClient.read_deployment, PrefectClient.set_flow_run_state, MlocGpuWorker._submit_run

async def read_deployment(self, *args, **more):
    if due("no-deployment"):
        raise httpx.ConnectError("the server is away")
    return await stock_read(self, *args, **more)

async def set_flow_run_state(self, flow_run_id, state, force=False):
    if state.is_pending() and due("deleted"):
        await self.request("DELETE", f"/flow_runs/{flow_run_id}")
    done = await stock_set(self, flow_run_id, state, force)
    if state.is_pending() and due("no-answer"):
        raise httpx.ReadError("the server is away")
    return done

async def submit_run(self, flow_run):
    await ours(self, flow_run)
    if due("broken"):
        raise KeyError("nobody thought of this")

PrefectClient.read_deployment, PrefectClient.set_flow_run_state = read_deployment, set_flow_run_state
MlocGpuWorker._submit_run = submit_run
"""


ROWS = 40


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    root = tmp_path_factory.mktemp("errors")
    with embedded_server(root, port=24640) as url:
        found = Pool(root, url)
        try:
            yield found
        finally:
            found.close()


@pytest.fixture
def faulty(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setattr(support, "_START", _FAULTS + support._START)
    return pool.worker("faulty", options={"limit": 1})


def at_work(pool: Pool, total: int = ROWS) -> str:
    """Return a run that is in the middle of its rows."""
    run = pool.submit(spec("beside", rows(total, 0.2)))
    until(lambda: computed(pool, run), why=lambda: pool.story(run))
    return run


def computed(pool: Pool, run: str) -> int:
    """Return how often a row of a run of one stage was computed."""
    files = [
        file for task in pool.task_ids(run).values() for file in (pool.results / task).glob("attempts/*/items.jsonl")
    ]
    return sum(file.read_text().count("\n") for file in files)


def test_what_cannot_be_taken_does_not_end_what_runs(pool: Pool, faulty: Worker):
    beside = at_work(pool)
    (faulty.home / "deleted").touch()
    pool.submit(spec("deleted"))
    until(lambda: not (faulty.home / "deleted").exists())
    later = []
    for fault in ("no-deployment", "no-answer"):
        (faulty.home / fault).touch()
        later.append(pool.submit(spec(fault)))
        until(lambda: not (faulty.home / fault).exists())  # noqa: B023
    for run in (*later, beside):
        assert pool.api.wait(run)["state"]["type"] == "COMPLETED", pool.story(run)
        assert pool.api.run(run)["run_count"] == 1
        assert pool.states(run).count("Running") == 1
    assert faulty.process.poll() is None
    faulty.stop()


def test_an_error_that_nobody_took_hands_back_what_runs(pool: Pool, faulty: Worker):
    """As if the worker had been stopped: it costs neither a start nor an attempt, and no row is computed twice."""
    total = 75  # enough for the worker to break down meanwhile
    run = at_work(pool, total)
    (faulty.home / "broken").touch()
    other = pool.submit(spec("other"))
    assert faulty.process.wait(STOP_SECONDS) != 0
    told = {state["name"]: state["message"] for state in pool.api.get(f"/flow_run_states/?flow_run_id={run}")}
    assert told["Crashed"] == STOPPED, pool.story(run)
    assert told["AwaitingRetry"] == "worker faulty was stopped"
    following = pool.worker("following", MLOC_MAX_RETRIES="0")
    for found in (run, other):
        assert pool.api.wait(found, "COMPLETED", "FAILED")["state"]["type"] == "COMPLETED", pool.story(run)
    assert computed(pool, run) == total
    following.stop()
