"""The bridge when it is killed, has no messaging, or is not the only one; and runs that keep records without it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import pytest

from mloc_prefect.store.states import Phase, StatusMark
from mloc_prefect.store.task_watch import StoreWatch
from tests.support.bridge_site import DISPATCH, DONE, ended, hears, root_of, submit, until, working
from tests.support.bridging import bridge_process
from tests.support.counts import count
from tests.support.flows import graph_text, rows
from tests.support.patience import FACT_SECONDS, STOP_SECONDS
from tests.support.server import prepare_home

if TYPE_CHECKING:
    from pathlib import Path

    from mloc_prefect.store.backends import Stores
    from tests.support.bridge_site import Site
    from tests.support.bridging import Heard


pytestmark = [pytest.mark.usefixtures("api"), pytest.mark.timeout(900)]

PORT = 24820
CHANGES = count("bridge-kill", 60, 1000)


async def change_states(url: str, number: int, after_each: Any) -> list[str]:
    """Make `number` state changes of unattended runs, three each; returns the task ids."""
    tasks = []
    async with httpx.AsyncClient(base_url=url, timeout=FACT_SECONDS) as http:
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
    site: Site, stores: Stores, heard: Heard, tmp_path: Path
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

            await until(all_there)
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
    site: Site, stores: Stores, heard: Heard, tmp_path: Path
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
    site: Site, stores: Stores, tmp_path: Path
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
    out, error = await asyncio.wait_for(process.communicate(), FACT_SECONDS)
    down = await asyncio.create_subprocess_exec(*command, "down", env=env, stderr=asyncio.subprocess.DEVNULL)
    assert await asyncio.wait_for(down.wait(), STOP_SECONDS) == 0
    assert process.returncode == 0, error.decode()
    return dict(json.loads(out.splitlines()[-1]))


async def test_mloc_run_keeps_records_of_its_own_run(site: Site, stores: Stores, heard: Heard, tmp_path: Path) -> None:
    text = graph_text({"a": ([], {}), "b": (["a"], {"who": "${param.who}"})}, name="mine")
    answer = await run_by_command(site.env(), tmp_path, text, "--param", "who=me")
    found = await stores.tasks.page(submission_id=answer["flow_run_id"])
    assert [(r.task_id, str(r.status)) for r in found] == [(t["task_id"], "DONE") for t in answer["tasks"]]
    assert {r.raw_yaml for r in found} == {text}
    for record in found:
        await hears(heard, record.task_id, DISPATCH + DONE)


@pytest.mark.parametrize("own", [True, False], ids=["own", "same"])
async def test_a_bridge_leaves_the_run_of_mloc_run_alone(
    site: Site, stores: Stores, heard: Heard, tmp_path: Path, *, own: bool
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
    async with httpx.AsyncClient(base_url=site.url, timeout=FACT_SECONDS) as http:
        known = (await http.get(f"/flow_runs/{answer['flow_run_id']}")).is_success
    assert known is not own


async def test_the_watch_reads_records_of_the_store(stores: Stores, site: Site) -> None:
    submission = await submit(site, stores, graph_text({"a": ([], {})}))
    async with StoreWatch(stores.tasks) as watch, asyncio.timeout(FACT_SECONDS):
        ended = asyncio.ensure_future(watch.ended(submission.task_ids[0]))
        await asyncio.sleep(0.1)
        await stores.tasks.transition(submission.task_ids[0], StatusMark(1, Phase.CANCELLED))
        assert await ended == "CANCELLED"
