"""What a Prefect user sees: a stock server, Prefect's own commands, a run that can be read through the API."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.patience import FACT_SECONDS
from tests.support.prefect_api import BIN, Api, environment, stock_server, worker_process

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("face")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return environment(home, f"http://127.0.0.1:{port}/api", PREFECT_SERVER_API_PORT=str(port))


@pytest.fixture(scope="module")
def api(env: dict[str, str]) -> Iterator[Api]:
    """A stock server: nothing of ours is in it but the installed package."""
    with stock_server(env) as url:
        yield Api(url)


@pytest.fixture(scope="module")
def deployed(api: Api, env: dict[str, str]) -> Api:
    prefect(env, "work-pool", "create", "gpu", "--type", "mloc-gpu")
    prefect(env, "--no-prompt", "deploy", "--all")
    return api


def prefect(env: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [BIN / "prefect", *arguments],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=FACT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_deployments_are_there_with_forms_for_their_parameters(deployed: Api):
    generic = deployed.get("/deployments/name/run-workflow/mloc")
    assert (generic["work_pool_name"], generic["work_queue_name"]) == ("gpu", "coordinator")
    assert generic["entrypoint"] == "mloc_prefect.orchestrate.entrypoint.run_workflow"
    assert generic["pull_steps"] == []
    assert generic["parameter_openapi_schema"]["required"] == ["spec"]
    assert deployed.get("/deployments/name/run-workflow/echo-example")["parameters"]["spec"].startswith("# The task")


def test_block_type_registers(api: Api, env: dict[str, str]):
    assert "MLOC Artifact Store" in prefect(env, "block", "register", "-m", "mloc_prefect")
    assert api.get("/block_types/slug/mloc-artifact-store")["name"] == "MLOC Artifact Store"
    script = [BIN / "python", str(ROOT / "blocks" / "register.py")]
    for _ in range(2):  # the second time it is there already
        made = subprocess.run(script, env=env, capture_output=True, text=True, timeout=FACT_SECONDS, check=True)
        assert made.stdout.strip() == "mloc-artifact-store/local"
    block = api.get("/block_types/slug/mloc-artifact-store/block_documents/name/local")
    assert block["data"]["url"] == env["MLOC_RESULTS_DIR"]


def test_a_spec_runs_and_can_be_read(deployed: Api, env: dict[str, str]):
    """`prefect deployment run` of the generic deployment: run, names, tags, graph, plan and result."""
    spec = (ROOT / "templates" / "echo.yaml").read_text()
    with worker_process(env, Path(env["MLOC_HOME"]) / "worker.log"):
        said = prefect(env, "deployment", "run", "run-workflow/mloc", "-p", f"spec={json.dumps(spec)}", "--watch")
    assert "Completed" in said
    (root,) = [run for run in runs(deployed) if run["deployment_id"]]
    stages = deployed.stages(root["id"])
    assert (root["name"], sorted(stages)) == ("echo-chain", ["echo-chain:first", "echo-chain:second"])
    assert root["state"]["name"] == "Completed"
    assert {"mloc", "mloc-type:echo"} <= set(stages["echo-chain:first"]["tags"])
    assert edges(deployed, root["id"]) == [("mloc-echo / echo-chain:first", "mloc-echo / echo-chain:second")]
    found = deployed.post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [root["id"]]}}})
    assert {"mloc-plan", "mloc-result"} <= {artifact["key"] for artifact in found}
    (task_id,) = [
        t.removeprefix("mloc-task:") for t in stages["echo-chain:second"]["tags"] if t.startswith("mloc-task:")
    ]
    result = json.loads((Path(env["MLOC_RESULTS_DIR"]) / task_id / "responses.json").read_text())
    assert json.dumps([1, 2, 3]) in json.dumps(result)


def runs(api: Api) -> list[dict[str, Any]]:
    return api.post("/flow_runs/filter", {})


def edges(api: Api, run_id: str) -> list[tuple[str, str]]:
    nodes = dict(api.get(f"/flow_runs/{run_id}/graph-v2")["nodes"])
    return [(nodes[p["id"]]["label"], node["label"]) for node in nodes.values() for p in node["parents"]]


def test_public_names_are_ordinary_prefect_objects(api: Api, env: dict[str, str]):
    """`build_flow` in somebody's own script, against the same server."""
    script = (
        "import asyncio\n"
        "from prefect import Flow\n"
        "from mloc_prefect import build_flow, load_workflow, plan_workflow, run_workflow\n"
        "flow = build_flow(plan_workflow(load_workflow('templates/echo.yaml')))\n"
        "assert isinstance(flow, Flow) and isinstance(run_workflow, Flow)\n"
        "state = asyncio.run(flow(return_state=True))\n"
        "print(state.name)\n"
    )
    own = {**os.environ, **env}
    done = subprocess.run(
        [BIN / "python", "-c", script],
        env=own,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=FACT_SECONDS,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["Completed"], done.stdout + done.stderr
    assert len([run for run in runs(api) if run["name"] == "echo-chain" and not run["deployment_id"]]) == 1
