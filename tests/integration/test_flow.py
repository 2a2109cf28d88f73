"""Plans as flows on a real Prefect server, with real executor processes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import AwaitingRetry, Crashed, Scheduled

from mloc_prefect.flow import spec_parameters
from mloc_prefect.flow.build import WorkflowFailedError, build_flow, run_plan
from mloc_prefect.flow.dispatcher import use_dispatcher
from mloc_prefect.flow.options import RunOptions
from mloc_prefect.flow.reports import run_artifacts
from mloc_prefect.flow.run_workflow import run_workflow
from mloc_prefect.prefect_ext.state_reasons import StateCode, StateReason, reason_of
from mloc_prefect.process.run_dir import run_dir
from mloc_prefect.settings import get_settings
from tests.support.flows import SUPPORT, Api, Holding, Recorder, dispatcher, graph, graph_text, lines, rows, until
from tests.support.patience import FACT_SECONDS
from tests.support.server import embedded_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionResult
    from mloc_prefect.flow.dispatcher import InProcessDispatcher, StageDispatcher, StageJob
    from tests.support.flows import Killable

pytestmark = pytest.mark.usefixtures("url")

ROOT = Path(__file__).parents[2]
DIAMOND = {
    "a": ([], {}),
    "b": (["a"], {}),
    "c": (["a"], {}),
    "d": (["b", "c"], {"seen": "${b.result.ok} and ${a.task_id}"}),
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with embedded_server(tmp_path_factory.mktemp("server")) as url, temporary_settings({PREFECT_API_URL: url}):
        yield url
        APILogWorker.drain_all(timeout=10)  # else these two try for a minute to reach a server that is gone
        EventsWorker.drain_all(timeout=10)


@pytest.fixture
def api(url: str) -> Api:
    return Api(url)


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[tuple[InProcessDispatcher, Killable]]:
    async with dispatcher(get_settings(home=tmp_path / "home")) as both:
        yield both


def options(local: tuple[InProcessDispatcher, Killable], tmp_path: Path, **more: Any) -> RunOptions:
    settings = get_settings(home=tmp_path / "home", **{"retry_base_delay": 0.0, **more.pop("settings", {})})
    return RunOptions(settings=settings, **{"dispatcher": local[0], **more})


class Together:
    """Lets two stages begin only when both have come: one after the other they never would."""

    def __init__(self, inner: StageDispatcher, *names: str) -> None:
        self._inner, self._names, self._barrier = inner, names, asyncio.Barrier(len(names))

    async def dispatch(self, job: StageJob, *, on_event: Callable[[ExecutionEvent], None]) -> ExecutionResult:
        if job.request.name in self._names:
            async with asyncio.timeout(FACT_SECONDS):
                await self._barrier.wait()
        return await self._inner.dispatch(job, on_event=on_event)


async def test_a_graph_shows_its_edges_names_tags_and_labels(api: Api, local: Any, tmp_path: Path) -> None:
    recorder = Recorder()
    together = Together(local[0], "demo:b", "demo:c")
    outcome = await build_flow(
        graph(DIAMOND), options=options(local, tmp_path, observer=recorder, dispatcher=together)
    )()
    root, stages = await api.run(outcome.flow_run_id), await api.stages(outcome.flow_run_id)
    assert outcome.ok
    assert await api.edges(outcome.flow_run_id) == {
        "demo:a": set(),
        "demo:b": {"demo:a"},
        "demo:c": {"demo:a"},
        "demo:d": {"demo:b", "demo:c"},
    }
    assert (root["name"], root["state_name"]) == ("demo", "Completed")
    assert set(root["tags"]) == {"mloc", f"mloc-submission:{outcome.flow_run_id}"}
    task_id = outcome.task("d").task_id
    assert set(stages["demo:d"]["tags"]) == {*root["tags"], f"mloc-task:{task_id}", "mloc-type:echo", "mloc-stage:d"}
    assert stages["demo:d"]["labels"].items() >= {"mloc.task-type": "echo", "mloc.task-id": task_id}.items()
    assert set(stages["demo:d"]["parameters"]) == {"upstream"}
    assert stages["demo:d"]["parameters"]["upstream"]["b"]["status"] == "DONE"
    # Independent stages run at the same time.
    b, c = stages["demo:b"], stages["demo:c"]
    assert max(b["start_time"], c["start_time"]) < min(b["end_time"], c["end_time"])
    result = json.loads(Path(outcome.task("d").result_path or "").read_text())
    assert result["echo"]["seen"] == f"True and {outcome.task('a').task_id}"
    assert [c[0] for c in recorder.calls].count("ended") == 4
    artifacts = await api.artifacts(outcome.flow_run_id)
    assert "| d | echo |" in artifacts[run_artifacts.PLAN_KEY]
    assert "demo: done" in artifacts[run_artifacts.RESULT_KEY]


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_flow_may_call_one_workflow_twice(api: Api, local: Any, tmp_path: Path, *, at_once: bool) -> None:
    workflow = build_flow(graph({"a": ([], {})}), options=options(local, tmp_path))

    @flow(name="both")
    async def both() -> list[Any]:
        return list(await asyncio.gather(workflow(), workflow())) if at_once else [await workflow(), await workflow()]

    first, second = await both()
    assert first.ok
    assert second.ok
    assert first.flow_run_id != second.flow_run_id
    assert first.task("a").task_id != second.task("a").task_id
    assert [(await api.run(done.flow_run_id))["run_count"] for done in (first, second)] == [1, 1]


async def test_a_failed_stage_fails_what_is_below_it_and_nothing_else(api: Api, local: Any, tmp_path: Path) -> None:
    plan = graph(
        {
            "a": ([], {"echo": {"fail": "boom"}}),
            "b": (["a"], {}),
            "c": (["b"], {}),
            "other": ([], {"echo": {"delay": 0.2}}),
        }
    )
    with pytest.raises(WorkflowFailedError) as caught:
        await build_flow(plan, options=options(local, tmp_path, settings={"max_retries": 0}))()
    outcome = caught.value.outcome
    stages = await api.stages(outcome.flow_run_id)
    states = {n: (r["state"]["type"], r["state"]["message"]) for n, r in stages.items()}
    assert states["demo:a"] == ("FAILED", "RuntimeError: boom")
    assert states["demo:b"] == states["demo:c"] == ("FAILED", "not run: stage 'a' failed")
    assert states["demo:other"][0] == "COMPLETED"
    reasons = {name: reason_of(stage["state"]) for name, stage in stages.items()}
    assert reasons["demo:a"] == StateReason(StateCode.LAST_ATTEMPT, attempt=1)
    assert reasons["demo:b"] == StateReason(StateCode.NOT_RUN)
    assert reasons["demo:other"] == StateReason(StateCode.COMMITTED, attempt=1)
    root = (await api.run(outcome.flow_run_id))["state"]
    assert root["type"] == "FAILED"
    assert root["message"] == "stage 'a' failed: RuntimeError: boom; not run: 'b', 'c'" == outcome.message
    assert await api.edges(outcome.flow_run_id) == {
        "demo:a": set(),
        "demo:b": {"demo:a"},
        "demo:c": {"demo:b"},
        "demo:other": set(),
    }


async def test_a_killed_host_is_retried_and_its_rows_are_kept(
    local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", SUPPORT)
    recorder, hosts, struck, release = Recorder(), local[1], [], tmp_path / "release"

    def strike(done: int) -> None:
        if done >= 4 and not struck:
            struck.append(done)
            hosts.kill()
            release.touch()

    recorder.on_progress = strike
    plan = graph({"a": ([], {**rows(12, 0.03), "hold": [10, str(release)]})})
    outcome = await run_plan(plan, options=options(local, tmp_path, observer=recorder, dispatcher=Holding(local[0])))
    task = outcome.task("a")
    directory = Path(task.result_path or "").parent
    assert [c for c in recorder.calls if c[0] == "started"] == [("started", "a", 1), ("started", "a", 2)]
    (retry,) = [c for c in recorder.calls if c[0] == "retry"]
    assert "killed by SIGKILL" in retry[3]
    assert task.summary["reused_rows"] >= 4
    done = [row["index"] for row in lines(directory)]
    assert sorted(done) == list(range(12)), "no row twice, none missing"
    assert [i["output"] for i in json.loads((directory / "responses.json").read_text())["items"]] == [
        f"row {i}" for i in range(12)
    ]
    assert "killed by SIGKILL" in (directory / "logs" / "stage.log").read_text()


async def test_a_second_run_of_a_submission_reuses_what_is_done(api: Api, local: Any, tmp_path: Path) -> None:
    plan = graph({"a": ([], {}), "b": (["a"], {"echo": {"fail": "boom"}})})
    first = await run_plan(plan, options=options(local, tmp_path, submission_id="s-1", settings={"max_retries": 0}))
    assert [t.status for t in first.tasks] == ["DONE", "FAILED"]
    manifest = Path(first.task("a").result_path or "").with_name("manifest.json")
    before = manifest.read_text()
    fixed = graph({"a": ([], {}), "b": (["a"], {})})
    second = await run_plan(fixed, options=options(local, tmp_path, submission_id="s-1"))
    assert [(t.status, t.reused) for t in second.tasks] == [("DONE", True), ("DONE", False)]
    assert second.task("a").task_id == first.task("a").task_id
    assert manifest.read_text() == before
    changed = graph({"a": ([], {"new": 1}), "b": (["a"], {})})
    third = await run_plan(changed, options=options(local, tmp_path, submission_id="s-1"))
    assert [t.reused for t in third.tasks] == [False, True]
    assert "mloc-submission:s-1" in (await api.run(third.flow_run_id))["tags"]


async def test_cancelling_ends_the_run_its_stages_and_their_processes(api: Api, tmp_path: Path) -> None:
    recorder = Recorder()
    settings = get_settings(home=tmp_path / "home")
    plan = graph({"a": ([], {"echo": {"delay": 60}}), "b": (["a"], {})})
    task = asyncio.create_task(run_plan(plan, options=RunOptions(settings=settings, observer=recorder)))
    await until(lambda: ("started", "a", 1) in recorder.calls)
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await api.run(recorder.flow_run_id))["state"]["type"] == "CANCELLED"
    stages = await api.stages(recorder.flow_run_id)
    assert {n: r["state"]["type"] for n, r in stages.items()} == {"demo:a": "CANCELLED"}
    assert recorder.outcomes["a"].status == "CANCELLED"
    place = str(run_dir(settings.home))
    assert [p.pid for p in psutil.process_iter() if p.is_running() and place in " ".join(_command(p))] == []


async def test_a_run_whose_process_was_killed_goes_on_where_it_was(api: Api, url: str, tmp_path: Path) -> None:
    release = tmp_path / "release"
    text = graph_text({"a": ([], {}), "b": (["a"], {**rows(10, 0.1), "hold": [8, str(release)]})})
    (tmp_path / "spec.yaml").write_text(text)
    own = {"PREFECT_API_URL": url, "MLOC_HOME": str(tmp_path / "home"), "PYTHONPATH": SUPPORT}
    environment = {**os.environ, **own}

    async def process(flow_run_id: str) -> asyncio.subprocess.Process:
        arguments = ("-m", "tests.support.started_run", flow_run_id, str(tmp_path / "spec.yaml"))
        return await asyncio.create_subprocess_exec(sys.executable, *arguments, env=environment, cwd=ROOT)

    def done() -> list[Any]:
        return [row for task in (tmp_path / "home" / "results").glob("*-*") for row in lines(task)]

    async with get_client() as client:
        run = await client.create_flow_run(build_flow(graph({"a": ([], {})})), state=Scheduled())
        first = await process(str(run.id))
        await until(lambda: len(done()) >= 3)
        first.kill()
        await first.wait()
        release.touch()
        for state in (Crashed(), AwaitingRetry()):  # as a reaper does it
            await client.set_flow_run_state(run.id, state, force=True)
    second = await process(str(run.id))
    assert await second.wait() == 0
    root, stages = await api.run(str(run.id)), await api.stages(str(run.id))
    assert (root["state"]["type"], root["run_count"], root["name"]) == ("COMPLETED", 2, "demo")
    assert {n: r["state"]["type"] for n, r in stages.items()} == {"demo:a": "COMPLETED", "demo:b": "COMPLETED"}
    assert sorted(row["index"] for row in done()) == list(range(10)), "no row twice, none missing"
    logs = "".join(p.read_text() for p in (tmp_path / "home" / "results").glob("*/logs/stage.log"))
    assert logs.count("finished before") == 1


async def test_a_failed_delivery_keeps_the_result_and_only_it_is_repeated(local: Any, tmp_path: Path) -> None:
    with _receiver([503, 200]) as (address, seen):
        spec = {**rows(3, 0.0), "output": {"destination": {"type": "http", "url": address}}}
        recorder = Recorder()
        outcome = await run_plan(graph({"a": ([], spec)}), options=options(local, tmp_path, observer=recorder))
    assert outcome.ok, outcome
    (retry,) = [c for c in recorder.calls if c[0] == "retry"]
    assert retry[3] == f"HTTP delivery for task {outcome.task('a').task_id} returned status 503: busy"
    assert len(seen) == 2
    assert seen[0]["result"]["items"] == seen[1]["result"]["items"]
    assert len(local[1].pids) == 1, "the executor ran once"


async def test_a_wrong_token_fails_at_once_and_a_later_run_only_delivers(local: Any, tmp_path: Path) -> None:
    with _receiver([401, 200]) as (address, _):
        spec = {**rows(2, 0.0), "output": {"destination": {"type": "http", "url": address}}}
        plan = graph({"a": ([], spec)})
        first = await run_plan(plan, options=options(local, tmp_path, submission_id="s-2"))
        second = await run_plan(plan, options=options(local, tmp_path, submission_id="s-2"))
    assert first.task("a").error == f"HTTP delivery for task {first.task('a').task_id} returned status 401: busy"
    assert second.ok
    assert len(local[1].pids) == 1


async def test_the_entry_point_runs_a_spec_in_its_own_run(api: Api, local: Any) -> None:
    text = graph_text({"a": ([], {"x": "${param.who}"}), "b": (["a"], {})}, name="sent")
    with use_dispatcher(local[0]):
        packed = spec_parameters.pack(text + "#" * 20_000, RunOptions().root)
        answer = await run_workflow(packed, parameters={"who": "me"})
    assert packed.startswith("sha256:")
    run = await api.run(answer["flow_run_id"])
    assert (answer["ok"], run["name"]) == (True, "sent")
    assert {"mloc", f"mloc-submission:{answer['flow_run_id']}"} <= set(run["tags"])
    assert set(await api.stages(answer["flow_run_id"])) == {"sent:a", "sent:b"}
    content = json.loads(Path(answer["tasks"][0]["result_path"]).read_text())
    assert content["echo"]["x"] == "me"


async def test_the_entry_point_fails_with_every_diagnostic(url: str) -> None:
    bad = graph_text({"a": (["b"], {"x": "${nobody.result}"}), "b": (["a"], {})}).replace("replicas: 1, ", "")
    state = await run_workflow(bad, file="bad.yaml", return_state=True)
    assert state.is_failed()
    assert (state.message or "").count("bad.yaml:") >= 3


async def test_a_plan_runs_inside_a_flow_of_the_user(api: Api, local: Any, tmp_path: Path) -> None:
    inner = build_flow(graph({"a": ([], {})}, name="inner"), options=options(local, tmp_path))

    @flow(name="outer")
    async def outer() -> str:
        return (await inner()).flow_run_id

    inner_id = await outer()
    assert (await api.run(inner_id))["parent_task_run_id"] is not None
    assert set(await api.stages(inner_id)) == {"inner:a"}


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


class _receiver:
    """An HTTP server that answers with the given statuses, in order."""

    def __init__(self, statuses: list[int]) -> None:
        seen: list[Any] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                seen.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(statuses[len(seen) - 1])
                self.end_headers()
                self.wfile.write(b"busy")

            def log_message(self, *_: object) -> None:
                """Keep quiet."""

        self.seen = seen
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> tuple[str, list[Any]]:
        Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/results", self.seen

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
