"""`mloc deploy` on a stock server: forms, schedules, versions, runs through a worker, and the commands of the page."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.support.command_line import mloc
from tests.support.patience import FACT_SECONDS
from tests.support.pool import Pool, until
from tests.support.prefect_api import BIN, Api, environment, stock_server
from tests.support.server import embedded_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.pool import Worker

PAGE = (Path(__file__).parents[2] / "docs" / "prefect.md").read_text(encoding="utf-8")
PLAIN = """apiVersion: mloc/v1
kind: EchoTask
metadata: {name: plain}
spec:
  taskType: echo
  resources: {replicas: 1, hardware: {cpu: 1, memory: 64Mi}}
  data: {message: "${param.topic}"}
"""


def block(language: str, number: int = 0) -> str:
    """Return a fenced block of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[number]


CAPITALS = block("yaml")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    root = tmp_path_factory.mktemp("deploy")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = root / "server"
    home.mkdir()
    env = environment(home, f"http://127.0.0.1:{port}/api", PREFECT_SERVER_API_PORT=str(port))
    with stock_server(env) as url:
        pool = Pool(root, url)
        try:
            yield pool
        finally:
            pool.close()


@pytest.fixture(scope="module")
def worker(site: Pool) -> Worker:
    return site.worker("deployed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the specs of the page."""
    (tmp_path / "capitals.yaml").write_text(CAPITALS)
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "more.yaml").write_text(CAPITALS.replace("name: capitals", "name: more"))
    (tmp_path / "specs" / "other.yml").write_text(CAPITALS.replace("name: capitals", "name: other"))
    (tmp_path / "plain.yaml").write_text(PLAIN)
    return tmp_path


def command(site: Pool, folder: Path, *words: str, code: int = 0) -> str:
    """Run a command in the folder, one of `mloc` in this process; return what it printed."""
    home = site.root / "client"
    home.mkdir(exist_ok=True)
    env = environment(home, site.api_url, MLOC_RESULTS_DIR=str(site.results), COLUMNS="200")
    if words[0] == "mloc":
        with pytest.MonkeyPatch.context() as patch, temporary_settings({PREFECT_API_URL: site.api_url}):
            for name in ("MLOC_HOME", "MLOC_RESULTS_DIR", "PREFECT_API_URL", "COLUMNS"):
                patch.setenv(name, env[name])
            patch.chdir(folder)
            result = mloc(*words[1:])
        assert result.exit_code == code, result.output
        return result.output
    done = subprocess.run(
        [BIN / words[0], *words[1:]],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=FACT_SECONDS,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def deployment(api: Api, name: str) -> Any:
    return api.get(f"/deployments/name/run-workflow/{name}")


def start(site: Pool, deployment_id: str, **parameters: Any) -> str:
    """Start a run of a deployment; return its id.

    A stock server on SQLite answers 503 while others write; Prefect's own client asks again then, too.
    """
    body = {"state": {"type": "SCHEDULED"}, "parameters": parameters}
    path = f"/deployments/{deployment_id}/create_flow_run"
    answer = until(lambda: (said := site.api.http.post(path, json=body)).status_code != 503 and said)
    assert answer.is_success, answer.text
    return str(answer.json()["id"])


def answers(site: Pool, deployment_id: str) -> list[Any]:
    """Wait for all runs of a deployment that somebody has started; return the data that their task gave back."""
    chosen = {"flow_runs": {"deployment_id": {"any_": [deployment_id]}}}
    found = []
    for run in site.api.post("/flow_runs/filter", chosen):
        if run["auto_scheduled"]:
            continue
        ended = site.api.wait(run["id"])
        assert ended["state"]["type"] == "COMPLETED", ended["state"]
        (task_id,) = site.task_ids(run["id"]).values()
        found.append(site.result(task_id)["echo"]["data"])
    return found


def test_the_commands_of_the_page_work(site: Pool, worker: Worker, folder: Path) -> None:
    lines = block("sh").splitlines()
    said = [command(site, folder, *shlex.split(line)) for line in lines]
    assert "run-workflow/capitals" in said[0]
    daily = deployment(site.api, "capitals-daily")
    assert daily["schedules"][0]["schedule"]["cron"] == "0 7 * * *"
    assert (daily["parameters"]["country"], sorted(daily["tags"])) == ("Italy", ["daily", "mloc"])
    for name in ("more", "other"):
        assert deployment(site.api, name)["schedules"][0]["schedule"]["interval"] == 1800.0
    made = deployment(site.api, "capitals")
    assert (made["work_pool_name"], made["work_queue_name"], made["pull_steps"]) == ("gpu", "coordinator", [])
    properties = made["parameter_openapi_schema"]["properties"]
    assert list(properties) == ["country", "rows"]
    assert (properties["rows"]["type"], properties["rows"]["default"]) == ("integer", 1)
    assert answers(site, made["id"]) == [{"message": "The capital of Spain", "rows": 3}]


def test_a_version_follows_the_spec(site: Pool, folder: Path) -> None:
    def deploy(*more: str) -> Any:
        return json.loads(
            command(site, folder, "mloc", "deploy", "capitals.yaml", "--name", "versions", "--json", *more)
        )

    first, again = deploy("--interval", "1h"), deploy()
    assert (first["status"], again["status"], again["version"]) == ("created", "unchanged", first["version"])
    (folder / "capitals.yaml").write_text(CAPITALS.replace("The capital of", "The town of"))
    changed = deploy()
    assert changed["status"] == "updated"
    assert changed["version"] != first["version"]
    found = deployment(site.api, "versions")
    assert found["version"] == changed["version"]
    assert found["schedules"][0]["schedule"]["interval"] == 3600.0  # not given again, so it stays
    assert "The town of" in found["parameters"]["mloc_spec"]


def test_a_wrong_parameter_is_one_clear_line(site: Pool, worker: Worker, folder: Path) -> None:
    command(site, folder, "mloc", "deploy", "capitals.yaml", "--name", "wrong", "--concurrency-limit", "2")
    assert deployment(site.api, "wrong")["global_concurrency_limit"]["limit"] == 2
    said = command(site, folder, "prefect", "deployment", "run", "run-workflow/wrong", "-p", "rows=many", code=1)
    assert "Validation failed for field 'rows'" in said
    said = command(site, folder, "mloc", "deploy", "capitals.yaml", "--param", "rows=many", code=2)
    assert "parameter 'rows' must be an integer" in said
    # Who goes round the form meets the run itself, before anything has started.
    made = deployment(site.api, "wrong")
    site.api.http.patch(f"/deployments/{made['id']}", json={"enforce_parameter_schema": False}).raise_for_status()
    run = site.api.wait(start(site, made["id"], rows="many"))
    assert run["state"]["type"] == "FAILED"
    assert "Parameter 'rows' must be an integer" in run["state"]["message"]
    assert site.api.stages(run["id"]) == {}


def test_bad_specs_are_refused_before_any_is_deployed(site: Pool, folder: Path) -> None:
    (folder / "specs" / "bad.yaml").write_text(CAPITALS.replace("default: 1", "default: one"))
    said = command(site, folder, "mloc", "deploy", "--all", "specs", "--tag", "late", code=2)
    assert "bad.yaml:7:34: error[bad-parameter]: The default of parameter 'rows' must be an integer" in said
    for name in ("more", "other"):
        assert site.api.http.get(f"/deployments/name/run-workflow/{name}").status_code in {200, 404}
        assert "late" not in site.api.http.get(f"/deployments/name/run-workflow/{name}").json().get("tags", [])
    (folder / "specs" / "bad.yaml").write_text(CAPITALS.replace("name: capitals", "name: more"))
    assert "two specs are named 'more'" in command(site, folder, "mloc", "deploy", "--all", "specs", code=2)


def test_without_a_block_values_say_the_types(site: Pool, worker: Worker, folder: Path) -> None:
    said = command(site, folder, "mloc", "deploy", "plain.yaml", "--interval", "1h", code=2)
    assert "parameter 'topic' has no value, so scheduled runs would fail" in said
    command(site, folder, "mloc", "deploy", "plain.yaml")
    made = deployment(site.api, "plain")
    assert made["parameter_openapi_schema"]["required"] == ["topic"]
    start(site, made["id"], topic="tides")
    assert answers(site, made["id"]) == [{"message": "tides"}]


def test_python_and_prefect_yaml_do_the_same(site: Pool, worker: Worker, folder: Path) -> None:
    script = block("python") + "print(flow.to_deployment('x').full_name)\n"
    assert "run-workflow/x" in command(site, folder, "python", "-c", script)
    made = deployment(site.api, "capitals-hourly")
    assert (made["parameters"]["country"], made["work_queue_name"]) == ("Italy", "coordinator")
    (folder / "prefect.yaml").write_text(block("yaml", 1))
    command(site, folder, "prefect", "--no-prompt", "deploy", "--all")
    from_file = deployment(site.api, "capitals-from-file")
    start(site, from_file["id"], rows=4)
    assert list(from_file["parameter_openapi_schema"]["properties"]) == ["country", "rows"]
    assert answers(site, from_file["id"]) == [{"message": "The capital of Spain", "rows": 4}]


def test_a_served_flow_runs_without_a_pool(site: Pool, folder: Path) -> None:
    script = "from mloc_prefect import workflow_flow\nworkflow_flow('capitals.yaml').serve('served')\n"
    home = site.root / "serving"
    home.mkdir()
    env = environment(home, site.api_url, MLOC_RESULTS_DIR=str(site.results), PREFECT_RUNNER_POLL_FREQUENCY="1")
    with (home / "log").open("wb") as log:
        serving = subprocess.Popen([BIN / "python", "-c", script], env=env, cwd=folder, stdout=log, stderr=log)
    try:
        url = "/deployments/name/run-workflow/served"
        until(lambda: site.api.http.get(url).is_success, why=(home / "log").read_text)
        run = site.api.wait(start(site, deployment(site.api, "served")["id"], rows=2))
        assert run["state"]["type"] == "COMPLETED", run["state"]
    finally:
        serving.terminate()
        serving.wait(FACT_SECONDS)


def test_the_form_of_any_spec_has_a_tall_field_with_an_example(site: Pool, worker: Worker) -> None:
    schema = deployment(site.api, "mloc")["parameter_openapi_schema"]
    assert list(schema["properties"]) == ["spec", "parameters", "strict"]
    field = schema["properties"]["spec"]
    assert (field["format"], schema["required"]) == ("json-string", ["spec"])
    run = site.api.wait(start(site, site.deployment(), spec=field["default"]))
    assert run["state"]["type"] == "COMPLETED", run["state"]


def test_the_embedded_server_takes_them_too(tmp_path: Path, folder: Path) -> None:
    with embedded_server(tmp_path / "server", port=24710) as url:
        site = Pool(tmp_path, url)
        command(site, folder, "mloc", "deploy", "capitals.yaml", "--interval", "1h")
        assert "unchanged" in command(site, folder, "mloc", "deploy", "capitals.yaml")
        assert deployment(site.api, "capitals")["schedules"][0]["schedule"]["interval"] == 3600.0
