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

from tests.support.prefect_api import BIN, Api, environment, worker_process
from tests.support.server import embedded_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ENTRYPOINT = "mloc_prefect.orchestrate.entrypoint.run_workflow"
USER_FLOW = """
import os, pathlib
from prefect import flow

@flow
def hello(target: str):
    pathlib.Path(target).write_text(f"{os.getpid()} {os.environ.get('MLOC_TEST_MARK')}")
"""


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
    assert {run["infrastructure_pid"].split(":")[1] for run in runs} == {str(worker.pid)}
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
    deadline = time.monotonic() + 40
    while not [s for s in api.stages(run_id).values() if s["state"]["type"] == "RUNNING"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
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


def test_other_flows_run_as_processes(api: Api, generic: str, worker: subprocess.Popen[bytes], tmp_path: Path):
    (tmp_path / "user.py").write_text(USER_FLOW)
    deployment = api.deploy(
        "user",
        entrypoint=f"{tmp_path}/user.py:hello",
        path=str(tmp_path),
        job_variables={"env": {"MLOC_TEST_MARK": "set"}},
    )
    run = api.wait(api.start(deployment, target=str(tmp_path / "out")), seconds=60)
    assert run["state"]["type"] == "COMPLETED", run["state"]
    pid, mark = (tmp_path / "out").read_text().split()
    assert pid == run["infrastructure_pid"]
    assert pid != str(worker.pid)
    assert mark == "set"


def test_a_bad_setting_is_one_sentence(env: dict[str, str]):
    done = subprocess.run(
        [BIN / "prefect", "worker", "start", "--pool", "gpu"],
        env={**env, "MLOC_INVENTORY": '{"cpu": 4}'},
        capture_output=True,
        text=True,
        timeout=60,
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


def wait_for(fact: Callable[[], Any], why: Callable[[], str], seconds: float = 40) -> None:
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
        deadline = time.monotonic() + 40
        while not hosts(process):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        children = descendants(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) is not None
    assert "Traceback" not in log.read_text()
    gone, left = psutil.wait_procs(children, timeout=60)
    assert left == []
    assert len(gone) >= 2  # supervisor and host
    run = api.run(run_id)
    assert (run["state"]["type"], run["state"]["name"]) == ("SCHEDULED", "AwaitingRetry")
    assert run["infrastructure_pid"] is None
    assert {stage["state"]["type"] for stage in api.stages(run_id).values()} == {"CRASHED"}
