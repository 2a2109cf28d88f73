"""Specs of echo stages, and access to runs on a Prefect server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from mloc_prefect.execution.hosts import HostPool
from mloc_prefect.flow.dispatcher import InProcessDispatcher
from mloc_prefect.flow.observer import NullObserver
from mloc_prefect.hardware.inventory import Inventory
from mloc_prefect.leases import MemoryLeaseBook
from mloc_prefect.plan import check
from mloc_prefect.process.run_dir import run_dir
from mloc_prefect.tasks.base import ExecutorRef
from tests.support.hosts import HELD
from tests.support.patience import FACT_SECONDS, START_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from mloc_prefect.execution.hosts import Host, HostSpec
    from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionResult
    from mloc_prefect.flow.dispatcher import StageJob
    from mloc_prefect.flow.outcome import StageOutcome
    from mloc_prefect.plan.workflow_plan import WorkflowPlan
    from mloc_prefect.settings import MlocSettings

SUPPORT = str(Path(__file__).parent)

HEAD = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: %s}
spec:
  taskType: echo
  resources: {replicas: 1, hardware: {cpu: '1', memory: 64Mi}}
"""


def graph_text(nodes: Mapping[str, tuple[Sequence[str], Mapping[str, Any]]], *, name: str = "demo") -> str:
    """Return a spec: node name -> (dependsOn, spec)."""
    lines = [HEAD % name + "  graph:", "    nodes:"]
    for node, (after, spec) in nodes.items():
        lines.append(f"    - {{name: {node}, dependsOn: {json.dumps(list(after))}, spec: {json.dumps(spec)}}}")
    return "\n".join(lines) + "\n"


def graph(nodes: Mapping[str, tuple[Sequence[str], Mapping[str, Any]]], *, name: str = "demo") -> WorkflowPlan:
    """Return the plan of `graph_text`."""
    plan, diagnostics = check(graph_text(nodes, name=name), params=("who",))
    assert plan is not None, diagnostics
    return plan


def rows(count: int, delay: float) -> dict[str, Any]:
    """Return the spec of an echo stage that takes `delay` seconds for each of `count` rows."""
    return {"echo": {"row_delay": delay}, "data": {"type": "list", "items": [f"row {i}" for i in range(count)]}}


class Holding:
    """Dispatches echo tasks that wait for the test where `spec.hold` says so (see `held_executors`).

    Their hosts need `SUPPORT` in PYTHONPATH.
    """

    def __init__(self, inner: InProcessDispatcher) -> None:
        self._inner = inner
        self.capacity = inner.capacity

    async def dispatch(self, job: StageJob, *, on_event: Callable[[ExecutionEvent], None]) -> ExecutionResult:
        """Dispatch with another executor."""
        if job.request.task_type == "echo":
            job = replace(job, executor=ExecutorRef(HELD, engine=job.executor.engine))
        return await self._inner.dispatch(job, on_event=on_event)


class Api:
    """Client of Prefect's API."""

    def __init__(self, url: str) -> None:
        self.client = httpx.AsyncClient(base_url=url, timeout=FACT_SECONDS)

    async def run(self, flow_run_id: str) -> dict[str, Any]:
        return (await self.client.get(f"/flow_runs/{flow_run_id}")).json()

    async def stages(self, flow_run_id: str) -> dict[str, dict[str, Any]]:
        body = {"flow_runs": {"parent_flow_run_id": {"any_": [flow_run_id]}}, "sort": "START_TIME_ASC"}
        return {r["name"]: r for r in (await self.client.post("/flow_runs/filter", json=body)).json()}

    async def edges(self, flow_run_id: str) -> dict[str, set[str]]:
        found = (await self.client.get(f"/flow_runs/{flow_run_id}/graph-v2")).json()["nodes"]
        names = {node["id"]: node["label"].rsplit(" / ", 1)[-1] for _, node in found}
        return {names[node["id"]]: {names[p["id"]] for p in node["parents"]} for _, node in found}

    async def artifacts(self, flow_run_id: str) -> dict[str, str]:
        body = {"flow_runs": {"id": {"any_": [flow_run_id]}}}
        found = (await self.client.post("/artifacts/filter", json=body)).json()
        return {a["key"] or a["type"]: a["data"] for a in found}


class Recorder(NullObserver):
    """Records the calls of an observer; `on_progress` is called with the number of finished rows."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.outcomes: dict[str, StageOutcome] = {}
        self.flow_run_id = ""
        self.on_progress: Any = lambda _done: None

    def run_started(self, flow_run_id: str, plan: WorkflowPlan, task_ids: Mapping[str, str]) -> None:
        self.flow_run_id = flow_run_id
        self.calls.append(("run", plan.name, tuple(task_ids)))

    def stage_started(self, key: str, attempt: int) -> None:
        self.calls.append(("started", key, attempt))

    def stage_event(self, key: str, event: ExecutionEvent) -> None:
        if event.kind == "progress":
            self.on_progress(event.data["done"])

    def stage_retry(self, key: str, attempt: int, error: str, delay: float) -> None:
        self.calls.append(("retry", key, attempt, error, delay))

    def stage_ended(self, key: str, outcome: StageOutcome) -> None:
        self.outcomes[key] = outcome
        self.calls.append(("ended", key, outcome.status))


class Killable:
    """Hosts whose processes a test can kill."""

    def __init__(self, pool: HostPool) -> None:
        self.pool = pool
        self.pids: list[int] = []

    async def acquire(self, spec: HostSpec) -> Host:
        host = await self.pool.acquire(spec)
        self.pids.append(host.pid)
        return host

    async def discard(self, key: str, *, pid: int | None = None) -> Any:
        return await self.pool.discard(key, pid=pid)

    async def exit_of(self, key: str, *, pid: int | None = None) -> Any:
        return await self.pool.exit_of(key, pid=pid)

    def kill(self) -> None:
        os.kill(self.pids[-1], signal.SIGKILL)


@asynccontextmanager
async def dispatcher(settings: MlocSettings) -> AsyncIterator[tuple[InProcessDispatcher, Killable]]:
    """Yield a dispatcher with real executor processes, and these."""
    inventory = Inventory(2)
    async with HostPool(run_dir(settings.home), 60, START_SECONDS) as pool:
        hosts = Killable(pool)
        leases = MemoryLeaseBook(inventory)
        yield InProcessDispatcher(settings=settings, hosts=hosts, leases=leases, inventory=inventory), hosts


async def until(condition: Any, seconds: float = FACT_SECONDS) -> None:
    """Wait for a condition; fail after `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def lines(directory: Path) -> list[dict[str, Any]]:
    """Return the rows of all attempts of a task, in order of file name."""
    files = sorted(directory.glob("attempts/*/items.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]
