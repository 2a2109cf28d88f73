"""The `mloc-gpu` worker as a process, on an embedded server."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.support.patience import FACT_SECONDS, START_SECONDS, STOP_SECONDS
from tests.support.prefect_api import BIN, Api, environment, worker_process
from tests.support.server import embedded_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ENTRYPOINT = "mloc_prefect.orchestrate.entrypoint.run_workflow"


def echo(name: str = "echo", *, delay: float = 0, **spec: Any) -> str:
    return f"""
apiVersion: mloc/v1
kind: EchoTask
metadata: {{name: {name}}}
spec:
  taskType: echo
  resources: {{replicas: 1, hardware: {{cpu: 1, memory: 64Mi}}}}
  output: {{destination: {{type: local}}}}
  echo: {{delay: {delay}}}
  data: {{message: {spec.get("message", "hi")}}}
"""


def descendants(process: Any) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def hosts(process: Any) -> set[int]:
    return {child.pid for child in descendants(process) if "mloc-host" in child.cmdline()}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worker")


@pytest.fixture(scope="module")
def api_url(home: Path) -> Iterator[str]:
    with embedded_server(home, port=24600) as url:
        yield url


@pytest.fixture(scope="module")
def env(home: Path, api_url: str) -> dict[str, str]:
    # Polls are a minute apart: what is picked up sooner was picked up because of an event.
    return environment(home, api_url, PREFECT_WORKER_QUERY_SECONDS="60")


@pytest.fixture(scope="module")
def worker(env: dict[str, str], home: Path) -> Iterator[subprocess.Popen[bytes]]:
    with worker_process(env, home / "worker.log", "--type", "mloc-gpu", "--work-queue", "default") as process:
        yield process


@pytest.fixture(scope="module")
def api(api_url: str) -> Api:
    return Api(api_url)


@pytest.fixture(scope="module")
def generic(api: Api, worker: subprocess.Popen[bytes]) -> str:
    assert worker.poll() is None
    return api.deploy("mloc", entrypoint=ENTRYPOINT)


def test_worker_made_the_pool_of_its_type(api: Api, generic: str):
    pool = api.get("/work_pools/gpu")
    assert pool["type"] == "mloc-gpu"
    assert "gpu_count" in pool["base_job_template"]["variables"]["properties"]


def test_runs_share_the_worker_process_and_a_warm_host(api: Api, generic: str, worker: subprocess.Popen[bytes]):
    runs = [api.wait(api.start(generic, spec=echo("one")))]
    first = hosts(worker)
    runs += [api.wait(api.start(generic, spec=echo("two")))]
    assert [run["state"]["type"] for run in runs] == ["COMPLETED", "COMPLETED"]
    assert [run["name"] for run in runs] == ["one", "two"]
    assert len({run["labels"]["mloc.incarnation"] for run in runs}) == 1
    assert len(first) == 1
    assert hosts(worker) == first


def test_runs_do_not_wait_for_each_other(api: Api, generic: str):
    slow = api.start(generic, spec=echo("slow", delay=300))
    api.wait(slow, "RUNNING")
    assert api.wait(api.start(generic, spec=echo("quick")))["state"]["type"] == "COMPLETED"
    assert api.run(slow)["state"]["type"] == "RUNNING"
    api.post(f"/flow_runs/{slow}/set_state", {"state": {"type": "CANCELLING"}})
    assert api.wait(slow)["state"]["type"] == "CANCELLED"


def test_a_spec_with_mistakes_fails_with_all_of_them(api: Api, generic: str):
    run = api.wait(api.start(generic, spec="apiVersion: mloc/v1\nkind: X\n", file="bad.yaml"))
    assert run["state"]["type"] == "FAILED"
    assert "bad.yaml:" in run["state"]["message"]
    assert "error[" in run["state"]["message"]
    assert api.stages(run["id"]) == {}


def test_cancelling_ends_run_and_stages_as_cancelled(api: Api, generic: str, worker: subprocess.Popen[bytes]):
    run_id = api.start(generic, spec=echo("cancelled", delay=300))
    deadline = time.monotonic() + FACT_SECONDS
    while not [s for s in api.stages(run_id).values() if s["state"]["type"] == "RUNNING"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    wait_for(lambda: hosts(worker), lambda: str(api.stages(run_id)))
    before = hosts(worker)
    api.post(f"/flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})
    run = api.wait(run_id)
    assert (run["state"]["type"], run["state"]["name"]) == ("CANCELLED", "Cancelled")
    assert {stage["state"]["type"] for stage in api.stages(run_id).values()} == {"CANCELLED"}
    assert hosts(worker) == before  # the host dropped the task and stays warm
    assert api.wait(api.start(generic, spec=echo("after")))["state"]["type"] == "COMPLETED"


def test_runs_cancelled_before_they_begin_end_too(api: Api, generic: str):
    """Between Pending and Running Prefect's engine neither starts nor ends a run that is Cancelling."""
    run_ids = []
    for step in range(8):
        run_ids.append(api.start(generic, spec=echo("early", delay=300)))
        time.sleep(step * 0.04)
        api.post(f"/flow_runs/{run_ids[-1]}/set_state", {"state": {"type": "CANCELLING"}})
    assert {api.wait(run_id)["state"]["name"] for run_id in run_ids} == {"Cancelled"}


def test_other_flows_and_commands_are_left_alone(api: Api, generic: str, home: Path, tmp_path: Path):
    """Unless the operator allows it (`test_pool.py`): a deployment can name any file and any command."""
    out = tmp_path / "out"
    command = {"command": f"touch {out}"}
    planted = api.deploy("planted", entrypoint="x.py:f", path=str(tmp_path), job_variables=command)
    disguised = api.deploy("disguised", entrypoint=ENTRYPOINT, work_queue_name="default", job_variables=command)
    hidden = api.deploy("hidden", entrypoint="x.py:f", path=str(tmp_path), work_queue_name="coordinator")
    left = [api.start(deployment, spec=echo()) for deployment in (planted, disguised, hidden)]
    body = {"state": {"type": "SCHEDULED"}, "parameters": {"spec": echo()}, "job_variables": command}
    left.append(api.post(f"/deployments/{generic}/create_flow_run", body)["id"])
    deadline = time.monotonic() + START_SECONDS
    while not all(run in (home / "worker.log").read_text() for run in (left[0], left[1], left[3])):
        assert time.monotonic() < deadline, (home / "worker.log").read_text()
        time.sleep(0.1)
    assert "this worker runs MLOC's own flows only" in (home / "worker.log").read_text()
    assert {api.run(run)["state"]["type"] for run in left} == {"SCHEDULED"}
    assert not out.exists()
    for run in left:
        api.post(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLED"}})


def test_a_bad_setting_is_one_sentence(env: dict[str, str]):
    done = subprocess.run(
        [BIN / "prefect", "worker", "start", "--pool", "gpu"],
        env={**env, "MLOC_INVENTORY": '{"cpu": 4}'},
        capture_output=True,
        text=True,
        timeout=FACT_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: setting MLOC_INVENTORY: ")
    assert "Traceback" not in done.stdout + done.stderr


def test_the_short_form_started_by_a_script_lets_its_runs_end_when_interrupted(
    api: Api, generic: str, env: dict[str, str], tmp_path: Path
):
    """A script's `&` has it ignore SIGINT; it drains nevertheless, takes nothing more, and says so by its status."""
    log = tmp_path / "worker.log"
    own = env | {"MLOC_WORK_POOL": "short-form", "MLOC_DRAIN_SECONDS": "30"}
    script = f"{BIN}/mloc worker start > {log} 2>&1 & echo $!; wait $!; echo $?"
    with subprocess.Popen(["bash", "-c", script], env=own, stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        pid = int(shell.stdout.readline())
        log.touch()
        try:
            wait_for(lambda: "started!" in log.read_text(), log.read_text)
            deployment = api.deploy("short-form", entrypoint=ENTRYPOINT, work_pool_name="short-form")
            ends = api.start(deployment, spec=echo("ends", delay=2))
            wait_for(lambda: hosts(SimpleNamespace(pid=pid)), log.read_text)  # what has no place yet gets none any more
            os.kill(pid, signal.SIGINT)
            late = api.start(deployment, spec=echo("late"))
            assert shell.stdout.readline() == "0\n", log.read_text()
        finally:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
    assert api.run(ends)["state"]["type"] == "COMPLETED"
    assert (api.run(late)["state"]["type"], api.run(late)["run_count"]) == ("SCHEDULED", 0)
    assert "Traceback" not in log.read_text()


def wait_for(fact: Callable[[], Any], why: Callable[[], str], seconds: float = FACT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, why()
        time.sleep(0.05)


def test_sigterm_ends_worker_runs_and_hosts(api: Api, generic: str, env: dict[str, str], home: Path):
    """What did not end in time is scheduled again, for another worker; no process of this one is left."""
    log = home / "worker-short.log"
    with worker_process({**env, "MLOC_DRAIN_SECONDS": "0.5"}, log, "--work-queue", "short") as process:
        deployment = api.deploy("short", entrypoint=ENTRYPOINT, work_queue_name="short")
        run_id = api.start(deployment, spec=echo("interrupted", delay=300))
        deadline = time.monotonic() + FACT_SECONDS
        while not hosts(process):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        children = descendants(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_SECONDS) is not None
    assert "Traceback" not in log.read_text()
    gone, left = psutil.wait_procs(children, timeout=STOP_SECONDS)
    assert left == []
    assert len(gone) >= 2  # supervisor and host
    run = api.run(run_id)
    assert (run["state"]["type"], run["state"]["name"]) == ("SCHEDULED", "AwaitingRetry")
    assert run["infrastructure_pid"] is None
    assert {stage["state"]["type"] for stage in api.stages(run_id).values()} == {"CRASHED"}
