"""The bridge as a process between a real Prefect server, whose messaging is on Valkey, and a real store of records."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.events.worker import EventsWorker
from prefect.flow_engine import run_flow_async
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from mloc_prefect.bridge.planned import planned_records
from mloc_prefect.bridge.records import Submission
from mloc_prefect.bridge.runs import PrefectRuns
from mloc_prefect.bridge.states import Mark, Phase
from mloc_prefect.bridge.stores import open_stores
from mloc_prefect.bridge.watch import StoreWatch
from mloc_prefect.orchestrate.dispatch import use_dispatcher
from mloc_prefect.orchestrate.embedded import EmbeddedServer
from mloc_prefect.orchestrate.entrypoint import run_workflow
from mloc_prefect.orchestrate.flow import run_plan
from mloc_prefect.orchestrate.options import RunOptions
from mloc_prefect.orchestrate.server_main import Private
from mloc_prefect.plan import check
from mloc_prefect.settings import get_settings
from tests.support.bridging import bridge_process, hearing
from tests.support.counts import count
from tests.support.flows import SUPPORT, Holding, dispatcher, graph, graph_text, rows
from tests.support.prefect_api import environment
from tests.support.server import prepare_home, start
from tests.support.valkey import embedded_valkey

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from mloc_prefect.bridge.records import TaskRecord
    from mloc_prefect.bridge.stores import Stores
    from mloc_prefect.bridge.valkey import EmbeddedValkey
    from tests.support.bridging import Heard

pytestmark = [pytest.mark.usefixtures("api"), pytest.mark.timeout(300)]

DISPATCH = ["tasks", "TASK_STARTED", "STATUS RUNNING"]  # the other STATUS RUNNING names no task
FAILED, DONE = ["TASK_FAILED", "STATUS IDLE"], ["TASK_SUCCEEDED", "STATUS IDLE"]
CHANGES = count("bridge-kill", 60, 1000)
DOWN = count("prefect-down", 3, 20)


@dataclass
class Site:
    """Servers of a site, and the environment of its processes."""

    home: Path
    valkey: EmbeddedValkey
    server: EmbeddedServer
    url: str
    bridge: subprocess.Popen[bytes] | None = None

    def env(self, **more: str) -> dict[str, str]:
        return environment(self.home, self.url, REDIS_URL=self.valkey.url(0), **more)

    @property
    def streaming(self) -> dict[str, str]:
        return self.env(PREFECT_REDIS_MESSAGING_URL=self.valkey.url(1))

    @property
    def settings(self) -> Any:
        return get_settings(
            home=self.home, results_dir=self.home / "results", retry_base_delay=0.0, redis_url=self.valkey.url(0)
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("site")
    with embedded_valkey(home, port=26800) as valkey:
        prepare_home(home)
        private = Private(messaging_url=valkey.url(1), docket_url=valkey.url(2))
        server = EmbeddedServer(home, 24800, private=private)
        try:
            yield Site(home, valkey, server, start(server).api_url)
        finally:
            APILogWorker.drain_all(timeout=5)
            EventsWorker.drain_all(timeout=5)
            server.stop_now()


@pytest.fixture(scope="module")
def api(site: Site) -> Iterator[str]:
    with temporary_settings({PREFECT_API_URL: site.url}):
        yield site.url


@pytest.fixture(scope="module")
def bridge(site: Site) -> Iterator[None]:
    log = site.home / "bridge.log"
    with bridge_process(site.streaming, log) as site.bridge:
        deadline = time.monotonic() + 60
        while "is active" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield


@pytest.fixture
def alone(site: Site) -> None:
    """The bridge of the tests before this one has left."""
    if site.bridge is not None and site.bridge.poll() is None:
        site.bridge.terminate()
        site.bridge.wait(60)


@pytest.fixture
async def stores(site: Site) -> AsyncIterator[Stores]:
    found = open_stores(site.valkey.url(0))
    yield found
    await found.close()


@pytest.fixture
async def heard(stores: Stores) -> AsyncIterator[Heard]:
    async with hearing(stores) as heard:
        yield heard


async def until(fact: Any, seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        found = fact()
        found = await found if asyncio.iscoroutine(found) else found
        if found:
            return found
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.05)


async def hears(heard: Heard, task_id: str, wanted: list[str]) -> None:
    """Check all messages about a task; what the store knows may be on its way to a listener."""
    await until(lambda: len(heard.of(task_id)) >= len(wanted))
    assert heard.of(task_id) == wanted


async def statuses(stores: Stores, submission_id: str) -> dict[str, str]:
    records = await stores.tasks.page(submission_id=submission_id, brief=True)
    return {record.graph_node_name or record.name: str(record.status) for record in records}


async def ended(stores: Stores, submission_id: str, seconds: float = 60.0) -> dict[str, TaskRecord]:
    async def all_ended() -> Any:
        records = await stores.tasks.page(submission_id=submission_id)
        return records if records and all(r.mark.phase.terminal for r in records) else None

    found = await until(all_ended, seconds)
    return {record.graph_node_name or record.name: record for record in found}


async def submit(site: Site, stores: Stores, text: str) -> Submission:
    """Do what the endpoint does."""
    plan, _ = check(text)
    assert plan is not None
    submission_id = str(uuid4())
    ids = RunOptions(settings=site.settings, submission_id=submission_id).ids(plan, "")
    submission = Submission(submission_id=submission_id, raw_yaml=text, task_ids=tuple(ids.values()), name=plan.name)
    records = planned_records(plan, submission, ids, max_attempts=4, submitted_ts=time.time())
    return await stores.tasks.submit(submission, records)


async def root_of(stores: Stores, submission_id: str, seconds: float = 60.0) -> str:
    async def flow_run() -> Any:
        found = await stores.tasks.submission(submission_id)
        return found and found.flow_run

    return str(await until(flow_run, seconds))


async def runs_of(url: str, submission_id: str) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        body = {"flow_runs": {"idempotency_key": {"any_": [submission_id]}}}
        return list((await http.post("/flow_runs/filter", json=body)).json())


@asynccontextmanager
async def working(site: Site) -> AsyncIterator[Any]:
    """Yield a function that runs dispatched runs in this process, as a worker does."""
    async with dispatcher(site.settings) as (here, _):

        async def work(flow_run_id: str) -> Any:
            async with get_client() as client:
                flow_run = await client.read_flow_run(flow_run_id)  # type: ignore[arg-type]
            with use_dispatcher(here):
                return await run_flow_async(
                    run_workflow, flow_run=flow_run, parameters=flow_run.parameters, return_type="state"
                )

        yield work


@pytest.fixture(autouse=True)
def _as_on_the_site(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOC_HOME", str(site.home))
    monkeypatch.setenv("MLOC_RESULTS_DIR", str(site.home / "results"))
    monkeypatch.setenv("MLOC_RETRY_BASE_DELAY", "0")
    monkeypatch.setenv("REDIS_URL", site.valkey.url(0))


# --- with a bridge at work --------------------------------------------------------------------------------------------


async def test_a_submission_is_dispatched_run_and_republished(
    site: Site, stores: Stores, heard: Heard, bridge: None
) -> None:
    text = graph_text({"a": ([], {}), "b": (["a"], {"echo": {"fail": "boom"}}), "c": (["b"], {})}, name="sent")
    submission = await submit(site, stores, text)
    root = await root_of(stores, submission.submission_id)
    (run,) = await runs_of(site.url, submission.submission_id)
    assert (run["id"], run["work_queue_name"]) == (root, "coordinator")
    assert run["parameters"]["spec"] == text
    async with working(site) as work:
        await work(root)
    found = await ended(stores, submission.submission_id)
    a, b, c = (found[name] for name in "abc")
    assert (a.status, b.status, c.status) == ("DONE", "FAILED", "FAILED")
    assert (b.error, b.retries, c.error) == ("RuntimeError: boom", 4, f"Dependency {b.task_id} failed")
    assert (a.topic, a.protocol) == ("tasks", "ours")
    await hears(heard, a.task_id, DISPATCH + DONE)
    await hears(heard, b.task_id, (DISPATCH + FAILED) * 4)
    await hears(heard, c.task_id, ["TASK_FAILED"])
    assert await found_by_ids(submission.submission_id) == {None, a.task_id, b.task_id, c.task_id}


async def test_a_run_from_python_gets_records_and_each_attempt_its_messages(
    site: Site, stores: Stores, heard: Heard, bridge: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", SUPPORT)
    async with dispatcher(site.settings) as (here, hosts):
        options = RunOptions(settings=site.settings, dispatcher=Holding(here))
        plan = graph({"a": ([], {**rows(12, 0.05), "hold": [10, str(tmp_path / "let-go")]})})
        work = asyncio.ensure_future(run_plan(plan, options=options))

        async def started() -> Any:
            return any("TASK_STARTED" in heard.of(task_id) for task_id, _, _ in heard.facts())

        await until(started)
        await until(lambda: hosts.pids)
        hosts.kill()
        (tmp_path / "let-go").touch()
        outcome = await work
    (record,) = (await ended(stores, outcome.flow_run_id)).values()
    assert (record.status, record.attempts, record.retries) == ("DONE", 2, 1)
    assert (record.name, record.parsed) == ("demo:a", {})
    await hears(heard, record.task_id, DISPATCH + FAILED + DISPATCH + DONE)
    assert await found_by_ids(outcome.flow_run_id) == {None, record.task_id}


async def found_by_ids(submission_id: str) -> set[str | None]:
    """Return the tasks of the runs of a submission, None for its root; by ids as by tags."""
    async with get_client() as client:
        runs = PrefectRuns(client)
        at_hand, tagged = await runs.at_hand([submission_id]), await runs.of_submissions([submission_id])
        (one, *_) = tagged
        assert {run.id for run in await runs.at_hand(["no-id"], [one.id])} >= {one.id}
    assert {run.id for run in at_hand} == {run.id for run in tagged}
    return {run.tags.task_id for run in at_hand}


async def test_a_result_from_outside_ends_the_stage_at_work(site: Site, stores: Stores, bridge: None) -> None:
    submission = await submit(
        site, stores, graph_text({"a": ([], rows(3000, 0.1)), "b": (["a"], {"x": "${a.result.by}"})})
    )
    root = await root_of(stores, submission.submission_id)
    first, second = submission.task_ids
    async with working(site) as work:
        run = asyncio.ensure_future(work(root))

        async def started() -> bool:
            record = await stores.tasks.get(first)
            return record is not None and record.mark.phase is Phase.STARTED

        await until(started)
        path = site.home / "results" / first / "responses.json"
        path.write_text(json.dumps({"task_id": first, "result": {"by": "somebody"}}))
        assert await stores.tasks.transition(first, Mark(1, Phase.DONE))
        state = await asyncio.wait_for(run, 60)
    assert state.is_completed()
    assert {r.status for r in (await ended(stores, submission.submission_id)).values()} == {"DONE"}
    assert json.loads((site.home / "results" / second / "responses.json").read_text())["echo"]["x"] == "somebody"


async def test_tasks_of_other_submissions_are_waited_for(site: Site, stores: Stores, bridge: None) -> None:
    first = await submit(site, stores, graph_text({"a": ([], {"echo": {"delay": 0.1, "fail": "boom"}})}))
    task_id = first.task_ids[0]
    later = await submit(site, stores, graph_text({"b": ([task_id], {})}))
    roots = [await root_of(stores, s.submission_id) for s in (first, later)]
    async with working(site) as work:
        await asyncio.gather(*map(work, roots))
    (record,) = (await ended(stores, later.submission_id)).values()
    assert (record.status, record.error) == ("FAILED", f"Dependency {task_id} failed")


async def test_a_run_that_fails_before_its_stages_fails_its_tasks(
    site: Site, stores: Stores, heard: Heard, bridge: None
) -> None:
    text = graph_text({"a": ([], {"output": {"destination": {"type": "http", "url": "http://evil.example/"}}})})
    submission = await submit(site, stores, text)
    root = await root_of(stores, submission.submission_id)
    async with working(site) as work:
        await work(root)
    (record,) = (await ended(stores, submission.submission_id)).values()
    assert record.status == "FAILED"
    assert "evil.example" in (record.error or "")
    await hears(heard, record.task_id, ["TASK_FAILED"])


async def test_a_submission_cancelled_in_the_journal_ends_in_prefect(
    site: Site, stores: Stores, heard: Heard, bridge: None
) -> None:
    submission = await submit(site, stores, graph_text({"a": ([], {})}))
    root = await root_of(stores, submission.submission_id)
    await stores.tasks.request_cancel(submission.submission_id)
    (record,) = (await ended(stores, submission.submission_id)).values()
    assert (record.status, record.error) == ("CANCELLED", "cancelled")
    async with get_client() as client:
        run = await client.read_flow_run(root)  # type: ignore[arg-type]
    assert run.state is not None and run.state.is_cancelled(), "it had not begun"
    await hears(heard, record.task_id, ["TASK_FAILED"])


@pytest.mark.counted
async def test_while_the_server_is_down_submissions_wait_for_it(site: Site, stores: Stores, bridge: None) -> None:
    await asyncio.to_thread(site.server.stop_now)
    sent = [await submit(site, stores, graph_text({"a": ([], {})})) for _ in range(5)]
    await asyncio.sleep(DOWN)
    assert await stores.journal.depth() == 5
    await asyncio.to_thread(start, site.server)
    for submission in sent:
        await root_of(stores, submission.submission_id)
        assert len(await runs_of(site.url, submission.submission_id)) == 1
    assert await until(lambda: _empty(stores))


async def _empty(stores: Stores) -> bool:
    return not await stores.journal.depth()


async def test_a_flushed_database_is_rebuilt(site: Site, stores: Stores, heard: Heard, bridge: None) -> None:
    submission = await submit(site, stores, graph_text({"a": ([], {}), "b": (["a"], {})}, name="kept"))
    open_one = await submit(site, stores, graph_text({"c": ([], {})}, name="open"))
    roots = [await root_of(stores, s.submission_id) for s in (submission, open_one)]
    async with working(site) as work:
        await work(roots[0])
    before = await ended(stores, submission.submission_id)
    for record in before.values():
        await hears(heard, record.task_id, DISPATCH + DONE)
    said = len(heard.all)
    await stores.backing.redis.flushdb()  # type: ignore[attr-defined]

    async def back() -> bool:
        return await statuses(stores, submission.submission_id) == {"a": "DONE", "b": "DONE"}

    await until(back)
    after = await ended(stores, submission.submission_id)
    for name, record in before.items():
        assert (after[name].task_id, after[name].depends_on) == (record.task_id, record.depends_on)
        assert (after[name].raw_yaml, after[name].parsed) == (record.raw_yaml, record.parsed)
        assert (after[name].attempts, after[name].assigned_worker) == (record.attempts, record.assigned_worker)
    await until(lambda: statuses(stores, open_one.submission_id))
    assert await statuses(stores, open_one.submission_id) == {"c": "PENDING"}
    assert not [m for channel, m in heard.all[said:] if m.get("task_id")], "what was published is not published again"
    async with working(site) as work:
        await work(roots[1])
    assert (await ended(stores, open_one.submission_id))["c"].status == "DONE"


# --- without it, or with others ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One state change that is made through the API."""

    run: str
    task: str
    state: str


async def change_states(url: str, number: int, after_each: Any) -> list[str]:
    """Make `number` state changes of unattended runs, three each; returns the task ids."""
    tasks = []
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        flow = (await http.post("/flows/", json={"name": "changes"})).json()["id"]
        for index in range(number // 3):
            task = f"{index}-{uuid4()}"
            tags = ["mloc", f"mloc-task:{task}", "mloc-type:echo"]
            body = {"flow_id": flow, "state": {"type": "PENDING"}, "tags": tags, "name": f"change-{index}"}
            run = (await http.post("/flow_runs/", json=body)).json()["id"]
            last = "FAILED" if index % 4 == 3 else "COMPLETED"
            for state in ("RUNNING", last):
                answer = await http.post(f"/flow_runs/{run}/set_state", json={"state": {"type": state}, "force": True})
                assert answer.is_success
            tasks.append(task)
            await after_each(index)
    return tasks


@pytest.mark.counted
async def test_a_killed_bridge_misses_nothing_and_says_nothing_twice(
    site: Site, stores: Stores, heard: Heard, alone: None, tmp_path: Path
) -> None:
    rounds = CHANGES // 3
    kills = {rounds // 3, 2 * rounds // 3}
    with bridge_process(site.streaming, tmp_path / "1.log") as first:
        running = [first]

        async def kill(index: int) -> None:
            if index in kills:
                running[-1].kill()
                running[-1].wait()
                again = bridge_process(site.streaming, tmp_path / f"{index}.log")
                running.append(again.__enter__())
                kept.append(again)

        kept: list[Any] = []
        try:
            await until(lambda: "is active" in (tmp_path / "1.log").read_text())
            tasks = await change_states(site.url, CHANGES, kill)

            async def all_there() -> bool:
                records = await stores.tasks.get_many(tasks, brief=True)
                return len(records) == len(tasks) and all(r.mark.phase.terminal for r in records.values())

            await until(all_there, 60)
            await until(lambda: all(len(heard.of(task)) > len(DISPATCH) + 1 for task in tasks))
            await asyncio.sleep(0.3)
        finally:
            for bridge in reversed(kept):
                bridge.__exit__(None, None, None)
    ends = {task: "TASK_FAILED" if index % 4 == 3 else "TASK_SUCCEEDED" for index, task in enumerate(tasks)}
    wanted = Counter({(task, 1, kind): 1 for task in tasks for kind in ("tasks", "TASK_STARTED", ends[task])})
    assert Counter({fact: n for fact, n in heard.facts().items() if fact[0] in ends}) == wanted
    for task in tasks:
        # The worker of such runs is one name for all of them, which others may keep busy.
        *told, last = heard.of(task)
        assert told == [*DISPATCH, ends[task]]
        assert last in {"STATUS IDLE", "STATUS RUNNING"}


async def test_without_redis_messaging_the_websocket_and_the_api_do(
    site: Site, stores: Stores, heard: Heard, alone: None, tmp_path: Path
) -> None:
    log = tmp_path / "bridge.log"
    with bridge_process(site.env(MLOC_RECONCILE_SECONDS="1"), log):
        await until(lambda: "is active" in log.read_text())
        await asyncio.sleep(1)
        submission = await submit(site, stores, graph_text({"a": ([], {"echo": {"delay": 0.3}})}))
        root = await root_of(stores, submission.submission_id)
        async with working(site) as work:
            await work(root)
        (record,) = (await ended(stores, submission.submission_id)).values()
    await hears(heard, record.task_id, DISPATCH + DONE)


async def test_of_two_bridges_one_is_active_and_the_other_takes_over(
    site: Site, stores: Stores, alone: None, tmp_path: Path
) -> None:
    logs = [tmp_path / "1.log", tmp_path / "2.log"]
    with bridge_process(site.streaming, logs[0]) as first:
        await until(lambda: "is active" in logs[0].read_text())
        with bridge_process(site.streaming, logs[1]):
            submission = await submit(site, stores, graph_text({"a": ([], {})}))
            await root_of(stores, submission.submission_id)
            assert "is active" not in logs[1].read_text()
            first.kill()
            submission = await submit(site, stores, graph_text({"a": ([], {})}))
            await root_of(stores, submission.submission_id)
            assert "is active" in logs[1].read_text()


async def run_by_command(env: dict[str, str], folder: Path, text: str, *options: str) -> dict[str, Any]:
    """Run a spec with `mloc run` in a home of its own, and return what it says of it."""
    spec = folder / "spec.yaml"
    spec.write_text(text)
    command, env = [sys.executable, "-m", "mloc_prefect.cli"], env | {"MLOC_HOME": str(folder / "home")}
    process = await asyncio.create_subprocess_exec(
        *(*command, "run", str(spec), *options, "--json"),
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await asyncio.wait_for(process.communicate(), 120)
    down = await asyncio.create_subprocess_exec(*command, "down", env=env, stderr=asyncio.subprocess.DEVNULL)
    assert await asyncio.wait_for(down.wait(), 60) == 0
    assert process.returncode == 0, error.decode()
    return dict(json.loads(out.splitlines()[-1]))


async def test_mloc_run_keeps_records_of_its_own_run(
    site: Site, stores: Stores, heard: Heard, alone: None, tmp_path: Path
) -> None:
    text = graph_text({"a": ([], {}), "b": (["a"], {"who": "${param.who}"})}, name="mine")
    answer = await run_by_command(site.env(), tmp_path, text, "--param", "who=me")
    found = await stores.tasks.page(submission_id=answer["flow_run_id"])
    assert [(r.task_id, str(r.status)) for r in found] == [(t["task_id"], "DONE") for t in answer["tasks"]]
    assert {r.raw_yaml for r in found} == {text}
    for record in found:
        await hears(heard, record.task_id, DISPATCH + DONE)


@pytest.mark.parametrize("own", [True, False], ids=["own", "same"])
async def test_a_bridge_leaves_the_run_of_mloc_run_alone(
    site: Site, stores: Stores, heard: Heard, alone: None, tmp_path: Path, *, own: bool
) -> None:
    """Whether it runs on a server of its own, of which the bridge knows nothing, or on that of the site."""
    log, env = tmp_path / "bridge.log", site.env()
    if own:
        prepare_home(tmp_path / "home")
        env = {name: value for name, value in env.items() if name not in {"PREFECT_API_URL", "PREFECT_HOME"}}
    with bridge_process(site.env(MLOC_RECONCILE_SECONDS="0.5"), log):
        await until(lambda: "is active" in log.read_text())
        text = graph_text({"a": ([], rows(40, 0.1)), "b": (["a"], {})})
        answer = await run_by_command(env, tmp_path, text)
        found = await stores.tasks.page(submission_id=answer["flow_run_id"])
    assert [str(record.status) for record in found] == ["DONE", "DONE"]
    for record in found:
        await until(lambda task=record.task_id: len(heard.of(task)) > len(DISPATCH) + 1)
        *told, last = heard.of(record.task_id)
        assert told == [*DISPATCH, "TASK_SUCCEEDED"]
        # Of two that follow one server, the one that tells may not have heard yet of the end before.
        assert last in ({"STATUS IDLE"} if own else {"STATUS IDLE", "STATUS RUNNING"})
    async with httpx.AsyncClient(base_url=site.url) as http:
        known = (await http.get(f"/flow_runs/{answer['flow_run_id']}")).is_success
    assert known is not own


async def test_the_watch_reads_records_of_the_store(stores: Stores, site: Site) -> None:
    submission = await submit(site, stores, graph_text({"a": ([], {})}))
    async with StoreWatch(stores.tasks) as watch, asyncio.timeout(60):
        ended = asyncio.ensure_future(watch.ended(submission.task_ids[0]))
        await asyncio.sleep(0.1)
        await stores.tasks.transition(submission.task_ids[0], Mark(1, Phase.CANCELLED))
        assert await ended == "CANCELLED"
