"""What dashboards and Prefect users see of a running `mloc up`: messages, registry, and runs that nobody submitted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from tests.support.counts import count
from tests.support.patience import FACT_SECONDS
from tests.support.pool import until
from tests.support.prefect_api import BIN
from tests.support.turning_names import called_server
from tests.support.up import Up, running_up
from tests.support.up_client import ECHO, curl, hear, root_runs, store_of, submit_echo, subscriber, wait_ended

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = Path(__file__).parents[2] / "docs"
PORT = 27150
HUNG = count("prefect-hung", 3, 20)
LIFE = ["tasks", "TASK_STARTED", "STATUS RUNNING", "TASK_SUCCEEDED", "STATUS IDLE"]

PYTHON = """
import asyncio, sys
from mloc_prefect import build_flow, load_workflow, plan_workflow
asyncio.run(build_flow(plan_workflow(load_workflow(sys.argv[1])))())
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    beats = {"HEARTBEAT_INTERVAL_SEC": "1"}
    with running_up(tmp_path_factory.mktemp("up") / "home", PORT, **beats) as up:
        yield up


def test_curl_submits_and_downloads_and_subscribers_hear_the_documented_sequence(up: Up) -> None:
    with subscriber(up) as heard:
        first, second = submit_echo(up)
        assert wait_ended(up.url, [first, second]) == {first: "DONE", second: "DONE"}
        assert hear(heard, first, len(LIFE))[:-1] == LIFE[:-1]
        assert hear(heard, second, len(LIFE)) == LIFE
        time.sleep(0.3)
        assert len(hear(heard, first, 0)) == len(hear(heard, second, 0)) == len(LIFE), "each comes once"
    assert "stage one" in curl(f"{up.url}/api/v1/results/{second}")
    told = [(at, m) for at, (channel, m) in enumerate(heard) if channel == "tasks"]
    assert [m["task_id"] for _, m in told] == [first, second]
    for at, message in told:
        wanted = {"task_id", "task", "task_type", "assigned_worker", "dispatched_at", "parent_task_id"}
        assert wanted <= set(message)
        assert message["task_type"] == "echo"
        # The dispatcher's own STATUS comes with it, and has no `extra`.
        channel, status = heard[at + 1]
        assert (channel, status["type"], status["status"]) == ("workers.events", "STATUS", "RUNNING")
        assert status["worker_id"] == message["assigned_worker"]
        assert "extra" not in status


def test_the_worker_is_kept_in_the_registry(up: Up) -> None:
    (worker,) = json.loads(curl(f"{up.url}/workers"))
    assert worker["stale"] is False
    assert worker["hardware"]["cpu"]["logical_cores"] == 4
    store, name = store_of(up), worker["worker_id"]
    assert store.smembers("workers:ids") == {name}
    wanted = {"worker_id", "status", "started_at", "pid", "env_json", "hardware_json", "tags_json", "last_seen"}
    assert wanted <= store.hgetall(f"worker:{name}").keys()
    until(lambda: 20 < store.ttl(f"worker:{name}:hb") <= 30)
    beats = {store.get(f"worker:{name}:hb")}

    def soon() -> bool:
        """Whether two beats came closer than by default, one in 5 s."""
        beats.add(store.get(f"worker:{name}:hb"))
        sent = sorted(datetime.fromisoformat(beat) for beat in beats)
        return any((after - before).total_seconds() < 3 for before, after in pairwise(sent))

    until(soon, why=lambda: beats)
    store.close()


# --- runs that nobody submitted ---------------------------------------------------------------------------------------


def from_the_pages(up: Up, spec: Path) -> None:
    """Do what the form of the web pages sends."""
    api = up.state().api_url
    deployment = httpx.get(f"{api}/deployments/name/run-workflow/mloc", auth=up.login, timeout=FACT_SECONDS).json()[
        "id"
    ]
    body = {"state": {"type": "SCHEDULED"}, "parameters": {"spec": spec.read_text()}}
    route = f"{api}/deployments/{deployment}/create_flow_run"
    assert httpx.post(route, json=body, auth=up.login, timeout=FACT_SECONDS).is_success


def from_the_prefect_command(up: Up, spec: Path) -> None:
    parameter = f"spec={json.dumps(spec.read_text())}"
    command(up, str(BIN / "prefect"), "deployment", "run", "run-workflow/mloc", "-p", parameter)


def from_python(up: Up, spec: Path) -> None:
    command(up, sys.executable, "-c", PYTHON, str(spec))


def from_mloc_run(up: Up, spec: Path) -> None:
    done = up.run("run", str(spec), MLOC_RUNTIME_IDLE_SECONDS="0.5")
    assert done.returncode == 0, done.stderr
    assert f"http://127.0.0.1:{up.port + 1}/runs/flow-run/" in done.stdout


def command(up: Up, *arguments: str) -> None:
    env = up.env | up.prefect_env
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=FACT_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("start", [from_the_pages, from_the_prefect_command, from_python, from_mloc_run])
def test_every_run_gets_records_and_messages_however_it_was_started(up: Up, tmp_path: Path, start: Any) -> None:
    name = start.__name__.replace("_", "-")
    spec = tmp_path / "spec.yaml"
    spec.write_text(ECHO.read_text().replace("echo-chain", name))
    with subscriber(up) as heard:
        start(up, spec)
        deadline = time.monotonic() + FACT_SECONDS
        while len(records := tasks_named(up, name)) < 2 or {r["status"] for r in records} != {"DONE"}:
            assert time.monotonic() < deadline, records
            time.sleep(0.2)
        first, second = sorted(records, key=lambda record: str(record["graph_node_name"]))
        assert [r["graph_node_name"] for r in (first, second)] == ["first", "second"]
        assert first["submission_id"] == second["submission_id"]
        for record in (first, second):
            assert hear(heard, record["task_id"], len(LIFE))[:-1] == LIFE[:-1]
    said = json.loads(curl(f"{up.url}/api/v1/results/{second['task_id']}"))
    assert first["task_id"] in json.dumps(said)


def tasks_named(up: Up, name: str) -> list[dict[str, Any]]:
    return list(httpx.get(f"{up.url}/api/v1/tasks", params={"name": name}, timeout=FACT_SECONDS).json())


# --- a server that is there and does not answer -----------------------------------------------------------------------


@pytest.mark.counted
def test_while_prefect_hangs_submissions_are_taken_and_run_once_it_answers_again(up: Up) -> None:
    prefect = up.state().parts["prefect"]
    assert prefect is not None
    os.kill(prefect, signal.SIGSTOP)
    try:
        sent = [submit_echo(up) for _ in range(5)]
        tasks = [task_id for pair in sent for task_id in pair]
        time.sleep(HUNG)
        assert json.loads(curl(f"{up.url}/metrics"))["journal_depth"] == 5
        records = {
            record["task_id"]: record for record in httpx.get(f"{up.url}/api/v1/tasks", timeout=FACT_SECONDS).json()
        }
        assert {records[task_id]["status"] for task_id in tasks} == {"PENDING"}
    finally:
        os.kill(prefect, signal.SIGCONT)
    assert set(wait_ended(up.url, tasks).values()) == {"DONE"}
    wanted = {f"mloc-submission:{records[first]['submission_id']}" for first, _ in sent}
    roots = [tag for run in root_runs(up) for tag in run["tags"] if tag in wanted]
    assert sorted(roots) == sorted(wanted), "each has one run"
    assert up.state().parts["prefect"] == prefect


# The one that the documents show.
(_AUTOMATION,) = re.findall(r"```yaml\n(name: an attempt.*?)```", (DOCS / "operations.md").read_text(), re.DOTALL)

FAILING = """
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: broken}
spec:
  taskType: echo
  resources: {replicas: 1, hardware: {cpu: 1, memory: 64Mi}}
  echo: {fail: the card is on fire}
"""


def test_an_automation_calls_a_webhook_when_a_stage_fails(up: Up, tmp_path: Path) -> None:
    spec = tmp_path / "broken.yaml"
    spec.write_text(FAILING)
    with called_server() as hook, httpx.Client(base_url=up.state().api_url, auth=up.login, timeout=FACT_SECONDS) as api:
        block_type = api.get("/block_types/slug/webhook").raise_for_status().json()["id"]
        schemas = {"block_schemas": {"block_type_id": {"any_": [block_type]}}}
        schema = api.post("/block_schemas/filter", json=schemas).raise_for_status().json()[0]["id"]
        block = {
            "name": "on-failure",
            "block_type_id": block_type,
            "block_schema_id": schema,
            "data": {"method": "POST", "url": f"http://127.0.0.1:{hook.port}/failed", "allow_private_urls": True},
        }
        document = api.post("/block_documents/", json=block).raise_for_status().json()["id"]
        automation = yaml.safe_load(_AUTOMATION)
        automation["actions"][0]["block_document_id"] = document
        made = api.post("/automations/", json=automation).raise_for_status().json()["id"]
        (task,) = json.loads(curl("-X", "POST", f"{up.url}/api/v1/tasks", "--data-binary", f"@{spec}"))["tasks"]
        assert wait_ended(up.url, [task["task_id"]]) == {task["task_id"]: "FAILED"}
        deadline = time.monotonic() + FACT_SECONDS
        while not hook.calls:
            assert time.monotonic() < deadline, api.get(f"/automations/{made}").json()
            time.sleep(0.1)
        assert hook.calls[0].startswith("POST /failed ")
        api.delete(f"/automations/{made}").raise_for_status()
