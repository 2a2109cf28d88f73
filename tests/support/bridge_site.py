"""A site for tests of the bridge: a real Prefect server, whose messaging is on Valkey, and a real store of records."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow_async

from mloc_prefect.bridge.prefect_runs import PrefectRuns
from mloc_prefect.flow.dispatcher import use_dispatcher
from mloc_prefect.flow.options import RunOptions
from mloc_prefect.flow.run_workflow import run_workflow
from mloc_prefect.plan import check
from mloc_prefect.prefect_ext.server.embedded import EmbeddedServer
from mloc_prefect.settings import get_settings
from mloc_prefect.store.record_factory import planned_records
from mloc_prefect.store.records import Submission
from tests.support.flows import dispatcher
from tests.support.patience import FACT_SECONDS
from tests.support.prefect_api import environment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from mloc_prefect.services.valkey import EmbeddedValkey
    from mloc_prefect.store.backends import Stores
    from mloc_prefect.store.records import TaskRecord
    from tests.support.bridging import Heard


DISPATCH = ["tasks", "TASK_STARTED", "STATUS RUNNING"]  # the other STATUS RUNNING names no task
FAILED, DONE = ["TASK_FAILED", "STATUS IDLE"], ["TASK_SUCCEEDED", "STATUS IDLE"]


@dataclass
class Site:
    """Servers of a site, and the environment of its processes."""

    home: Path
    valkey: EmbeddedValkey
    server: EmbeddedServer
    url: str

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


async def until(fact: Any, seconds: float = FACT_SECONDS) -> Any:
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


async def ended(stores: Stores, submission_id: str, seconds: float = FACT_SECONDS) -> dict[str, TaskRecord]:
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


async def root_of(stores: Stores, submission_id: str, seconds: float = FACT_SECONDS) -> str:
    async def flow_run() -> Any:
        found = await stores.tasks.submission(submission_id)
        return found and found.flow_run

    return str(await until(flow_run, seconds))


async def runs_of(url: str, submission_id: str) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(base_url=url, timeout=FACT_SECONDS) as http:
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


async def found_by_ids(submission_id: str) -> set[str | None]:
    """Return the tasks of the runs of a submission, None for its root; by ids as by tags."""
    async with get_client() as client:
        runs = PrefectRuns(client)
        by_ids, tagged = await runs.find_by_ids([submission_id]), await runs.of_submissions([submission_id])
        (one, *_) = tagged
        assert {run.id for run in await runs.find_by_ids(["no-id"], [one.id])} >= {one.id}
    assert {run.id for run in by_ids} == {run.id for run in tagged}
    return {run.tags.task_id for run in by_ids}
