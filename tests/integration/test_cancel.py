"""A running task on a pool is cancelled by each of the ways that users have, and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.support.patience import FACT_SECONDS
from tests.support.pool import spec, until
from tests.support.up import Up, running_up
from tests.support.up_client import root_runs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PREFECT = Path(sys.executable).parent / "prefect"
CARD = {"count": 1, "type": "a100"}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    inventory = {"cpus": 4, "memory": "16GiB", "gpus": [{"type": "a100", "memory": "80GiB"}]}
    with running_up(tmp_path_factory.mktemp("cancel") / "home", 27500, MLOC_INVENTORY=json.dumps(inventory)) as up:
        yield up


def executors(up: Up) -> list[str]:
    """Return the processes of executor hosts and their supervisors."""
    return [line for line in up.left_over() if "mloc-host" in line]


def by_http(up: Up, task_id: str) -> None:
    answer = httpx.post(f"{up.url}/api/v1/tasks/{task_id}/cancel", timeout=FACT_SECONDS)
    assert (answer.status_code, answer.json()["stopping"]) == (200, [task_id])


def by_mloc(up: Up, task_id: str) -> None:
    done = up.run("cancel", task_id, MLOC_URL=up.url)
    assert done.returncode == 0, done.stderr


def by_prefect(up: Up, task_id: str) -> None:
    cancel_run(up, root_of(up, task_id)["id"])


def root_of(up: Up, task_id: str) -> dict[str, Any]:
    submission = record(up, task_id)["submission_id"]
    (run,) = [run for run in root_runs(up) if f"mloc-submission:{submission}" in run["tags"]]
    return run


def cancel_run(up: Up, run: str) -> None:
    env = up.env | up.prefect_env
    command = [PREFECT, "flow-run", "cancel", run]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=FACT_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def record(up: Up, task_id: str) -> dict[str, Any]:
    return httpx.get(f"{up.url}/api/v1/tasks/{task_id}", timeout=FACT_SECONDS).json()


def submit(up: Up, name: str) -> str:
    """Submit a task that takes the only card for long; returns its id."""
    text = spec(name, gpu=CARD, echo={"delay": 300})
    answer = httpx.post(
        f"{up.url}/api/v1/tasks", content=text, headers={"content-type": "text/yaml"}, timeout=FACT_SECONDS
    ).json()
    return str(answer["tasks"][0]["task_id"])


@pytest.mark.parametrize("how", [by_http, by_mloc, by_prefect])
def test_a_task_that_runs_ends_with_its_executor(up: Up, how: Callable[[Up, str], None]) -> None:
    task_id = submit(up, "long")
    until(lambda: executors(up) and record(up, task_id).get("started_ts"), why=lambda: record(up, task_id))
    how(up, task_id)
    began = time.monotonic()
    until(lambda: not executors(up), why=lambda: executors(up))
    until(lambda: record(up, task_id)["status"] == "CANCELLED", why=lambda: record(up, task_id))
    assert record(up, task_id)["error"] == "cancelled"
    print(f"gone after {time.monotonic() - began:.1f} s")


@pytest.mark.parametrize("begun", [False, True])
def test_a_task_is_cancelled_by_its_run_on_the_pool(up: Up, *, begun: bool) -> None:
    """That is the run which shows the worker, and so the one that people cancel: waiting for the card, or at work."""
    busy = submit(up, "busy")
    until(lambda: executors(up) and record(up, busy).get("started_ts"), why=lambda: record(up, busy))
    task_id = submit(up, "queued")
    tag = {"flow_runs": {"tags": {"all_": [f"mloc-attempt:{task_id}"]}}}
    api = up.state().api_url
    (child,) = until(
        lambda: httpx.post(f"{api}/flow_runs/filter", json=tag, auth=up.login, timeout=FACT_SECONDS).json()
    )
    if begun:
        by_http(up, busy)
        until(lambda: record(up, task_id).get("started_ts"), why=lambda: record(up, task_id))
    cancel_run(up, child["id"])
    until(lambda: record(up, task_id)["status"] == "CANCELLED", why=lambda: record(up, task_id))
    assert record(up, task_id)["error"] == "cancelled"
    until(lambda: root_of(up, task_id)["state"]["type"] == "CANCELLED", why=lambda: root_of(up, task_id)["state"])
    if not begun:
        by_http(up, busy)
    until(lambda: not executors(up), why=lambda: executors(up))
