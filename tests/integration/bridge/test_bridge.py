"""The bridge as a process at work: what it dispatches, republishes, waits for and rebuilds."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from prefect.client.orchestration import get_client

from mloc_prefect.flow.build import run_plan
from mloc_prefect.flow.options import RunOptions
from mloc_prefect.store.states import Phase, StatusMark
from tests.support.bridge_site import (
    DISPATCH,
    DONE,
    FAILED,
    ended,
    found_by_ids,
    hears,
    root_of,
    runs_of,
    statuses,
    submit,
    until,
    working,
)
from tests.support.counts import count
from tests.support.flows import SUPPORT, Holding, dispatcher, graph, graph_text, rows
from tests.support.patience import FACT_SECONDS
from tests.support.server import start

if TYPE_CHECKING:
    from pathlib import Path

    from mloc_prefect.store.backends import Stores
    from tests.support.bridge_site import Site
    from tests.support.bridging import Heard


pytestmark = [pytest.mark.usefixtures("api"), pytest.mark.timeout(900)]

PORT = 24800
DOWN = count("prefect-down", 3, 20)


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
        assert await stores.tasks.transition(first, StatusMark(1, Phase.DONE))
        state = await asyncio.wait_for(run, FACT_SECONDS)
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
