"""A worker process and a client of Prefect's API, for tests that observe runs from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from tests.support.patience import FACT_SECONDS, START_SECONDS, STOP_SECONDS
from tests.support.server import prepare_home

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BIN = Path(sys.executable).parent
# Started as by a shell's `&`: SIGINT, through which Prefect itself would stop it, is ignored.
_WORKER = "import signal; signal.signal(2, signal.SIG_IGN); from prefect.cli import app; app()"
ENDS = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def environment(home: Path, api_url: str, **more: str) -> dict[str, str]:
    """Return the environment of commands that belong to `home` and use the server at `api_url`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLOC_"))}
    return kept | {
        "MLOC_HOME": str(home),
        "MLOC_RESULTS_DIR": str(home / "results"),
        "MLOC_INVENTORY": '{"cpus": 4, "memory": "16GiB", "gpus": []}',
        "PREFECT_HOME": str(home / "prefect-client"),
        "PREFECT_API_URL": api_url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        **more,
    }


@contextmanager
def stock_server(env: Mapping[str, str]) -> Iterator[str]:
    """Run `prefect server start`, with only the package of ours installed; yield its API URL.

    Args:
        env: From `environment`, with `PREFECT_SERVER_API_PORT`.
    """
    home = Path(env["MLOC_HOME"])
    prepare_home(home)
    (home / "prefect").rename(env["PREFECT_HOME"])
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen([BIN / "prefect", "server", "start"], env=dict(env), stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(env["PREFECT_API_URL"]):
            assert server.poll() is None, (home / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield env["PREFECT_API_URL"]
    finally:
        server.terminate()
        server.wait(STOP_SECONDS)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.TransportError:
        return False


@contextmanager
def worker_process(env: Mapping[str, str], log: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `prefect worker start --pool gpu` until the block ends; yield once it polls."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, "worker", "start", "--pool", "gpu", *options],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=dict(env),
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while "started!" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Api:
    """Client of Prefect's HTTP API."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=FACT_SECONDS)  # SQLite may be locked for 60 s

    def post(self, path: str, body: Any = None) -> Any:
        """Return the response to a POST."""
        answer = self.http.post(path, json=body or {})
        assert answer.is_success, answer.text
        return answer.json()

    def get(self, path: str) -> Any:
        """Return the response to a GET."""
        answer = self.http.get(path)
        assert answer.is_success, answer.text
        return answer.json()

    def deploy(self, name: str, **fields: Any) -> str:
        """Create a deployment of the flow `run-workflow` on the pool; return its id."""
        flow = self.post("/flows/", {"name": "run-workflow"})
        body = {"name": name, "flow_id": flow["id"], "work_pool_name": "gpu", "enforce_parameter_schema": False}
        return str(self.post("/deployments/", body | fields)["id"])

    def start(self, deployment: str, **parameters: Any) -> str:
        """Create a run; return its id."""
        body = {"state": {"type": "SCHEDULED"}, "parameters": parameters}
        return str(self.post(f"/deployments/{deployment}/create_flow_run", body)["id"])

    def run(self, run_id: str) -> Any:
        """Return a run."""
        return self.get(f"/flow_runs/{run_id}")

    def wait(self, run_id: str, *types: str, seconds: float = FACT_SECONDS) -> Any:
        """Wait until a run is in one of the states `types` (default: any final state); return it."""
        deadline = time.monotonic() + seconds
        while (run := self.run(run_id))["state"]["type"] not in (types or ENDS):
            assert time.monotonic() < deadline, f"still {run['state']}"
            time.sleep(0.1)
        return run

    def stages(self, run_id: str) -> dict[str, Any]:
        """Return the subflow runs of a run by name."""
        found = self.post("/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run_id]}}})
        return {run["name"]: run for run in found}
