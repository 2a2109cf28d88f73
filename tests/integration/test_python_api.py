"""The page about Python: its examples as they are printed, and both clients against a real endpoint with Valkey."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prefect import flow, task
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from mloc_prefect import (
    AsyncMlocClient,
    ExecutionError,
    MlocClient,
    RefusedSpecError,
    WorkflowOutcome,
    build_flow,
    load_workflow,
    plan_workflow,
)
from mloc_prefect.client.errors import AccessError, NotFoundError, RefusedConflictError
from mloc_prefect.store.backends import open_stores
from tests.support.endpoint import SPEC
from tests.support.endpoint_process import EndpointProcess, endpoint
from tests.support.flows import Api
from tests.support.patience import FACT_SECONDS
from tests.support.server import embedded_server
from tests.support.up import running_up
from tests.support.valkey import embedded_valkey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_prefect.services.valkey import EmbeddedValkey

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
(YAML,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FLOW, RESULT, SYNC, ASYNC = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
ROOT = Path(__file__).parents[2]
TOKEN = "dev-token-of-the-clients"


def run_example(code: str, folder: Path, **variables: str) -> str:
    """Run an example in a fresh interpreter beside the spec of the page; return what it printed."""
    (folder / "answers.yaml").write_text(YAML)
    (folder / "example.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "example.py"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=FACT_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def prefect_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with (
        embedded_server(tmp_path_factory.mktemp("server"), port=24700) as url,
        temporary_settings({PREFECT_API_URL: url}),
    ):
        yield url
        APILogWorker.drain_all(timeout=10)  # else these two try for a minute to reach a server that is gone
        EventsWorker.drain_all(timeout=10)


async def edges(url: str, flow_name: str) -> dict[str, set[str]]:
    """Return what the nodes of the only run of a flow depend on, by the names of tasks and subflows."""
    api = Api(url)
    (run,) = (await api.client.post("/flow_runs/filter", json={"flows": {"name": {"any_": [flow_name]}}})).json()
    found = await api.edges(run["id"])
    return {name.partition("-")[0]: {one.partition("-")[0] for one in after} for name, after in found.items()}


async def test_a_users_flow_calls_a_spec_between_two_tasks_and_uses_its_rows(prefect_url: str, tmp_path: Path) -> None:
    assert len([line for line in FLOW.splitlines() if line]) <= 15
    home = {"MLOC_HOME": str(tmp_path / "home"), "PREFECT_API_URL": prefect_url}
    assert run_example(FLOW, tmp_path, **home).splitlines()[-1] == "[30, 20]"
    assert await edges(prefect_url, "report") == {"questions": set(), "answers": set(), "lengths": {"answers"}}


async def test_a_spec_waits_for_what_the_users_flow_names(prefect_url: str) -> None:
    answer = build_flow(plan_workflow(load_workflow(YAML)))

    @task
    def prepare(*, fails: bool) -> None:
        assert not fails

    @flow(name="waits")
    async def waits() -> WorkflowOutcome:
        found: WorkflowOutcome = await answer(wait_for=[prepare.submit(fails=False)])
        with pytest.raises(ExecutionError, match="did not reach a 'COMPLETED' state"):
            await answer(wait_for=[prepare.submit(fails=True)])
        return found

    assert [row["output"] for row in (await waits()).task("answers").result.rows()] == ["replaced"]
    assert (await edges(prefect_url, "waits"))["answers"] == {"prepare"}


def test_the_result_of_the_page(tmp_path: Path) -> None:
    run_example(RESULT, tmp_path)


def test_the_clients_of_the_page_against_a_whole_installation(tmp_path: Path) -> None:
    with running_up(tmp_path / "home", 24720) as up:
        environment = {key: value for key, value in up.env.items() if key.startswith(("MLOC_", "PREFECT_"))}
        assert run_example(SYNC, tmp_path, **environment) == "DONE ['replaced']\n"
        lines = run_example(ASYNC, tmp_path, **environment).splitlines()
        assert lines[-1] == "out/responses.json"
        assert any(line.endswith(" DONE") for line in lines)
        (second,) = [line.split()[0] for line in lines if line.endswith(" DONE")]
        assert second in up.run("status", second).stdout, "the command uses the same client"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clients")


@pytest.fixture(scope="module")
def valkey(home: Path) -> Iterator[EmbeddedValkey]:
    with embedded_valkey(home, port=24740) as server:
        yield server


@pytest.fixture(scope="module")
def served(home: Path, valkey: EmbeddedValkey) -> Iterator[EndpointProcess]:
    with endpoint(home, valkey.url(), ORCHESTRATOR_TOKEN=TOKEN, MLOC_HOST="127.0.0.1") as running:
        yield running


def bad_spec() -> str:
    return SPEC.replace("taskType: echo", "taskType: echo\n  timeoutSec: soon")


@contextmanager
def refused(error: type[Exception]) -> Iterator[Any]:
    """Expect an error that does not show the token."""
    with pytest.raises(error) as caught:
        yield caught
    assert TOKEN not in "".join(traceback.format_exception(caught.value)) + repr(caught.value)


def post_result(url: str, task_id: str) -> None:
    """Play the worker."""
    body = {"task_id": task_id, "result": {"ok": True, "items": [{"index": 0, "output": "hi"}]}}
    httpx.post(f"{url}/api/v1/results", json=body, headers={"Authorization": f"Bearer {TOKEN}"}).raise_for_status()


async def publish(url: str, task_id: str) -> None:
    stores = open_stores(url)
    await stores.publisher.publish("tasks.events", {"type": "X", "task_id": task_id})
    await stores.close()


def write_log(home: Path, task_id: str) -> None:
    log = home / "results" / task_id / "logs" / "stage.log"
    log.parent.mkdir(parents=True)
    log.write_text("one\ntwo\n")


def test_the_sync_client_against_a_real_endpoint(
    served: EndpointProcess, valkey: EmbeddedValkey, home: Path, tmp_path: Path
) -> None:
    with MlocClient(served.url, TOKEN) as client:
        assert client.validate(SPEC)["ok"] is True
        first = client.submit(SPEC, idempotency_key="sync")
        assert client.submit(SPEC, idempotency_key="sync")["submission_id"] == first["submission_id"]
        task_id = first["tasks"][0]["task_id"]
        assert [record["task_id"] for record in client.list_tasks(submission_id=first["submission_id"])] == [task_id]
        assert client.task(task_id[:13])["status"] in {"PENDING", "WAITING"}
        with refused(NotFoundError):
            client.result(task_id)
        with client.events("tasks.events", task_id=task_id) as messages:
            asyncio.run(publish(valkey.url(), task_id))
            heard = next(messages)
        assert (heard.channel, heard.message) == ("tasks.events", {"type": "X", "task_id": task_id})
        write_log(home, task_id)
        assert list(client.logs(task_id, tail=1)) == ["two"]
        (tmp_path / "note.txt").write_text("kept")
        assert Path(client.upload(task_id, tmp_path / "note.txt")).read_text() == "kept"
        post_result(served.url, task_id)
        assert list(client.logs(task_id, follow=True)) == ["one", "two"]
        assert [record["status"] for record in client.wait(task_id, timeout=FACT_SECONDS)] == ["DONE"]
        assert [row["output"] for row in client.result(task_id).rows()] == ["hi"]
        assert next(client.download(task_id, tmp_path / "out")) == tmp_path / "out" / "responses.json"
        with refused(RefusedConflictError):
            client.cancel(task_id)
        other = client.submit(SPEC)["submission_id"]
        assert len(client.cancel(other)["cancelled"]) == 1
        assert client.status(other)[0]["status"] == "CANCELLED"
        assert client.workers() == []


async def test_the_async_client_against_a_real_endpoint(
    served: EndpointProcess, valkey: EmbeddedValkey, home: Path, tmp_path: Path
) -> None:
    async with AsyncMlocClient(served.url, TOKEN) as client:
        submitted = await client.submit(SPEC)
        task_id = submitted["tasks"][0]["task_id"]
        async with client.events(task_id=task_id) as messages:
            await publish(valkey.url(), task_id)
            heard = await anext(messages)
        assert heard.message == {"type": "X", "task_id": task_id}
        await asyncio.to_thread(write_log, home, task_id)
        await asyncio.to_thread((tmp_path / "note.txt").write_text, "kept")
        assert (await client.upload(task_id, tmp_path / "note.txt")).endswith("note.txt")
        await asyncio.to_thread(post_result, served.url, task_id)
        assert [line async for line in client.logs(task_id, follow=True)] == ["one", "two"]
        assert [line async for line in client.logs(task_id)] == ["one", "two"]
        assert [record["status"] for record in await client.wait([task_id], timeout=FACT_SECONDS)] == ["DONE"]
        saved = [path async for path in client.download(task_id, tmp_path / "out")]
        assert saved[0] == tmp_path / "out" / "responses.json"
        assert [row["output"] for row in (await client.result(task_id)).rows()] == ["hi"]
        assert (await client.list_tasks(newest_first=True, limit=1))[0]["task_id"] == task_id
        with refused(RefusedConflictError):
            await client.cancel(task_id)
        with refused(RefusedSpecError) as caught:
            await client.submit(bad_spec())
        assert caught.value.diagnostics[0].path == "spec.timeoutSec"


def test_a_refused_spec_and_a_refused_token(served: EndpointProcess) -> None:
    with MlocClient(served.url, TOKEN) as client:
        with refused(RefusedSpecError) as caught:
            client.submit(bad_spec())
        found = caught.value.diagnostics[0]
        lines = bad_spec().splitlines()
        assert lines[found.line - 1][found.column - 1 :] == "soon"
        assert (found.code, found.found) == ("invalid-type", '"soon"')
        assert TOKEN not in repr(client)
    for wrong in (None, "wrong-" + TOKEN):
        with MlocClient(served.url, wrong) as client, refused(AccessError):
            client.workers()
