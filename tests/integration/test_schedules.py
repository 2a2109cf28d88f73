"""Schedules of deployments make runs: Prefect's scheduler works with the installed libraries, SQLAlchemy above all."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.patience import FACT_SECONDS
from tests.support.prefect_api import Api, environment, stock_server, worker_process
from tests.support.server import embedded_server

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
_SECONDS = FACT_SECONDS  # the scheduler looks at new deployments every 5 s, at all of them every 60 s


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("schedules")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return environment(home, f"http://127.0.0.1:{port}/api", PREFECT_SERVER_API_PORT=str(port))


@pytest.fixture(scope="module")
def stock(env: dict[str, str]) -> Iterator[Api]:
    with stock_server(env) as url:
        yield Api(url)


def test_an_interval_makes_runs_on_a_stock_server_and_the_worker_runs_them(stock: Api, env: dict[str, str]) -> None:
    deployment = every(stock, seconds=15)  # a slow machine must be done with one run before the next
    first = made(stock, deployment)[0]
    assert first["auto_scheduled"]
    with worker_process(env, Path(env["MLOC_HOME"]) / "worker.log"):
        ended = next_finished(stock, deployment)
    assert ended["state"]["type"] == "COMPLETED", ended["state"]


def test_an_interval_makes_runs_on_the_embedded_server(tmp_path: Path) -> None:
    with embedded_server(tmp_path) as url:
        api = Api(url)
        runs = made(api, every(api, seconds=3600))
    assert {run["state"]["type"] for run in runs} == {"SCHEDULED"}
    assert len({run["expected_start_time"] for run in runs}) == len(runs)


def every(api: Api, *, seconds: float) -> str:
    """Deploy the echo template on an interval; returns the id of the deployment."""
    api.post("/work_pools/", {"name": "gpu", "type": "mloc-gpu"})
    return api.deploy(
        "every-few-seconds",
        entrypoint="mloc_prefect.orchestrate.entrypoint.run_workflow",
        pull_steps=[],
        parameters={"spec": (ROOT / "templates" / "echo.yaml").read_text()},
        schedules=[{"active": True, "schedule": {"interval": seconds}}],
    )


def runs_of(api: Api, deployment: str, **filters: Any) -> list[dict[str, Any]]:
    body = {"deployments": {"id": {"any_": [deployment]}}, "flow_runs": filters, "sort": "EXPECTED_START_TIME_ASC"}
    found: list[dict[str, Any]] = api.post("/flow_runs/filter", body)
    return found


def made(api: Api, deployment: str) -> list[dict[str, Any]]:
    """Wait until the scheduler has made runs of `deployment`."""
    deadline = time.monotonic() + _SECONDS
    while not (found := runs_of(api, deployment)):
        assert time.monotonic() < deadline, "the scheduler has made no run"
        time.sleep(0.2)
    return found


def next_finished(api: Api, deployment: str) -> dict[str, Any]:
    deadline = time.monotonic() + _SECONDS
    while not (ended := runs_of(api, deployment, state={"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}})):
        assert time.monotonic() < deadline, [run["state"]["name"] for run in runs_of(api, deployment)]
        time.sleep(0.2)
    return ended[0]
