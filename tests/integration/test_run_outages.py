"""A worker whose Prefect server fails at each request of a run, once: every run ends as if nothing had been."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.integration.test_worker import ENTRYPOINT, echo
from tests.support.fault_proxy import Fault, FaultProxy, fault_proxy
from tests.support.patience import FACT_SECONDS
from tests.support.prefect_api import Api, environment, worker_process
from tests.support.server import embedded_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_AT_ONCE = 6
KINDS = ("500", "unavailable", "closed", "lost")
OF_A_RUN = (
    "GET /deployments/ID",
    "GET /flow_runs/ID",
    "GET /flows/ID",
    "PATCH /flow_runs/ID",
    "PATCH /flow_runs/ID/labels",
    "POST /flow_runs/",
    "POST /flow_runs/ID/set_state",
)
"""What a plain run of one stage asks between its claim and its end; a newer Prefect may ask more."""

KEPT = {"GET /deployments/ID", "GET /flows/ID"}
"""What of this is kept for some seconds."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outages")


@pytest.fixture(scope="module")
def api(home: Path) -> Iterator[Api]:
    with embedded_server(home, port=24660) as url:
        yield Api(url)


@pytest.fixture(scope="module")
def proxy(api: Api, home: Path) -> Iterator[FaultProxy]:
    with fault_proxy(str(api.http.base_url).rstrip("/")) as found:
        env = environment(home, found.url, PREFECT_WORKER_QUERY_SECONDS="2", MLOC_HEARTBEAT_TTL="20")
        with worker_process(env, home / "worker.log", "--type", "mloc-gpu"):
            yield found


@pytest.fixture(scope="module")
def deployment(api: Api, proxy: FaultProxy) -> str:
    del proxy  # its worker has made the pool
    return api.deploy("mloc", entrypoint=ENTRYPOINT)


def test_a_plain_run_asks_what_is_listed(api: Api, proxy: FaultProxy, deployment: str) -> None:
    proxy.faults += [Fault("POST /flows/", kind) for kind in KINDS]  # asked for the first run only
    assert api.wait(api.start(deployment, spec=echo("warm")))["state"]["type"] == "COMPLETED"
    assert proxy.faults == []
    proxy.asked.clear()
    assert api.wait(api.start(deployment, spec=echo("plain")))["state"]["type"] == "COMPLETED"
    asked = {request for request in proxy.asked if "/flow" in request or "/deployments" in request}
    asked -= {"POST /flow_runs/filter", "GET /deployments/name/run-workflow/mloc"}
    assert set(OF_A_RUN) - KEPT <= asked <= {*OF_A_RUN, "POST /task_runs/"}


def test_each_request_of_a_run_waits_through_each_kind_of_failure(
    api: Api, proxy: FaultProxy, deployment: str, home: Path
) -> None:
    proxy.faults += [Fault(request, kind) for kind in KINDS for request in OF_A_RUN]
    runs: list[str] = []
    deadline = time.monotonic() + 3 * FACT_SECONDS
    while proxy.faults:
        assert time.monotonic() < deadline, f"not asked: {proxy.faults}"
        started = [api.start(deployment, spec=echo(f"run-{len(runs) + n}")) for n in range(_AT_ONCE)]
        runs += started
        for run in started:
            ended = api.wait(run, seconds=2 * FACT_SECONDS)
            assert ended["state"]["type"] == "COMPLETED", (ended["state"], proxy.met, (home / "worker.log").read_text())
    log = (home / "worker.log").read_text()
    assert "exited with non-zero status" not in log
    stages = [stage for run in runs for stage in api.stages(run).values()]
    assert [stage["state"]["type"] for stage in stages] == ["COMPLETED"] * len(runs), "each once"
    assert len(list((home / "results").glob("*/manifest.json"))) >= len(runs)
