"""Conversations with the original, recorded and replayed: what a client of MLOC sees of `mloc up --no-worker`.

The fake workers of the recording are played with it. What may differ stands in tests/transcript_differences.yaml. Then
what the original could not do with the same workers: shards with one result, vanished workers, a single worker.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from redis.asyncio import Redis

from tests.support.original_worker import OriginalWorker, expire, started_worker
from tests.support.patience import FACT_SECONDS, STOP_SECONDS
from tests.support.replay import Replay, Site
from tests.support.transcript import Differences, scenarios
from tests.support.up import running_up

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PORT = 28000
OPEN_DATABASE = 5
"""Redis database of the endpoint without a token: it must be empty."""

DELAYS = {"MLOC_RETRY_BASE_DELAY": "1", "MLOC_RETRY_MAX_DELAY": "4"}
"""As in the recording."""

SPEC = """
apiVersion: mloc/v1
kind: InferenceTask
metadata: {name: beyond}
spec:
  taskType: inference
  resources: {replicas: 1, hardware: {cpu: 1, memory: 1Gi}}
  model: {source: {identifier: tiny/model}}
  data: {type: list, items: [a, b, c, d, e, f, g]}
"""


@dataclass
class Replayed:
    """All scenarios, each replayed when it is first asked for."""

    site: Site
    differences: Differences = field(default_factory=Differences.load)
    _failures: dict[str, list[str]] = field(default_factory=dict)

    def failures(self, name: str) -> list[str]:
        """Return what is not as recorded, and not listed."""
        if name not in self._failures:
            if name == "20":
                with open_endpoint(self.site) as site:
                    self._failures[name] = asyncio.run(Replay(site, name, self.differences).run())
            else:
                self._failures[name] = asyncio.run(Replay(self.site, name, self.differences).run())
        return self._failures[name]


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replayed]:
    home = tmp_path_factory.mktemp("up")
    with running_up(home, PORT, "--no-worker", "--host", "127.0.0.1", ORCHESTRATOR_TOKEN="dev-token", **DELAYS) as up:
        password = (home / "valkey" / "password").read_text().strip()
        place = up.state().redis.split()[0].removeprefix("redis://")
        yield Replayed(Site(url=up.url, redis=f"redis://:{password}@{place}", results=home / "results"))


@contextmanager
def open_endpoint(site: Site) -> Iterator[Site]:
    """Run a second endpoint, without a token, on an empty database."""
    redis = f"{site.redis.rpartition('/')[0]}/{OPEN_DATABASE}"
    env = {**os.environ, "MLOC_HOME": str(site.results.parent), "REDIS_URL": redis, "PORT": str(PORT + 5)}
    process = subprocess.Popen(
        [sys.executable, "-m", "mloc_prefect.server"], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().decode().split()[-1]
        yield Site(url=url, redis=redis, results=site.results, token=None)
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


@pytest.mark.parametrize("name", scenarios())
def test_a_client_sees_what_it_saw_with_the_original(replayed: Replayed, name: str) -> None:
    assert replayed.failures(name) == []


def test_every_listed_difference_occurs(replayed: Replayed) -> None:
    for name in scenarios():
        replayed.failures(name)
    unused = [f"{e['scenario']} {e['step']} {e['field']}" for e in replayed.differences.unused()]
    assert unused == []


# --- beyond the recording ---------------------------------------------------------------------------------------------


class Client:
    """A client, and ears on the channels."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.heard: list[tuple[str, dict[str, Any]]] = []

    async def submit(self, text: str) -> str:
        """Submit a spec of one task; returns its id."""
        answer = await self.http.post("/api/v1/tasks", content=text, headers={"Content-Type": "text/yaml"})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["tasks"][0]["task_id"])

    async def record(self, task_id: str) -> dict[str, Any]:
        """Return the record of a task."""
        return dict((await self.http.get(f"/api/v1/tasks/{task_id}")).json())

    async def until(self, task_id: str, **wanted: Any) -> dict[str, Any]:
        """Wait until a record shows what is wanted."""
        async with asyncio.timeout(FACT_SECONDS):
            while True:
                found = await self.record(task_id)
                if wanted.items() <= found.items():
                    return found
                assert found["status"] not in {"FAILED", "CANCELLED"}, found
                await asyncio.sleep(0.05)

    def messages(self, channel: str) -> list[dict[str, Any]]:
        """Return what was said on one channel."""
        return [message for name, message in self.heard if name == channel]


@asynccontextmanager
async def client(site: Site) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {site.token}"}
    async with (
        httpx.AsyncClient(base_url=site.url, headers=headers, trust_env=False, timeout=FACT_SECONDS) as http,
        Redis.from_url(site.redis, decode_responses=True) as redis,
        redis.pubsub() as channels,
    ):
        found = Client(http)
        await channels.subscribe("tasks", "tasks.events")

        async def listen() -> None:
            async for message in channels.listen():
                if message["type"] == "message":
                    found.heard.append((message["channel"], json.loads(message["data"])))

        listener = asyncio.create_task(listen())
        try:
            yield found
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)


@pytest.mark.parametrize("generation", ["first", "later"])
async def test_shards_run_at_several_original_workers_and_give_one_result(replayed: Replayed, generation: Any) -> None:
    site = replayed.site
    options = {"url": site.redis, "generation": generation, "results": site.results}
    async with (
        client(site) as here,
        OriginalWorker(worker_id="s-a", **options) as a,
        OriginalWorker(worker_id="s-b", **options) as b,
        OriginalWorker(worker_id="s-c", **options) as c,
    ):
        task_id = await here.submit(SPEC + "  parallel: {enabled: true, max_shards: 3}\n")
        await here.until(task_id, status="DONE", assigned_worker="MULTI")
        answer = (await here.http.get(f"/api/v1/results/{task_id}")).json()
        children = [one for one in (await here.http.get("/api/v1/tasks")).json() if one["parent_task_id"] == task_id]
        sent = [message for message in here.messages("tasks") if message["parent_task_id"] == task_id]
        assert sorted(len(worker.got) for worker in (a, b, c)) == [1, 1, 1]
    assert list(answer) == ["task_id", "worker_id", "metadata", "received_at", "result"]
    assert (answer["task_id"], answer["worker_id"]) == (task_id, "MULTI")
    assert answer["metadata"] == {"aggregated": True, "shards": 3}
    merged = answer["result"]["merged"]
    assert [item["output"] for item in merged["items"]] == [f"echo:{letter}" for letter in "abcdefg"]
    assert merged["usage"]["num_requests"] == 7
    assert merged["model"] == "tiny/model"
    assert [shard["task_id"] for shard in answer["result"]["shards"]] == [
        one["task_id"] for one in sorted(children, key=lambda one: one["shard_index"])
    ]
    assert sorted((one["shard_index"], one["shard_total"]) for one in children) == [(0, 3), (1, 3), (2, 3)]
    assert sorted((one["shard_index"], one["shard_total"]) for one in sent) == [(0, 3), (1, 3), (2, 3)]
    assert all("_upstreamResults" not in one["task"]["spec"] for one in sent)


async def test_a_killed_workers_task_goes_on_at_another_one(replayed: Replayed) -> None:
    site = replayed.site
    options = ("--results", str(site.results), "--heartbeat", "60", "--gpus", "a100", "--delay", "60")
    async with client(site) as here:
        with started_worker(site.redis, "k-a", *options) as first:
            task_id = await here.submit(SPEC)
            await here.until(task_id, status="DISPATCHED", assigned_worker="k-a")
            async with OriginalWorker(url=site.redis, worker_id="k-b", results=site.results):
                first.kill()
                await expire(site.redis, "k-a")
                record = await here.until(task_id, status="DONE")
    assert (record["assigned_worker"], record["retries"], record["error"]) == ("k-b", 0, None)
    assert [message["assigned_worker"] for message in here.messages("tasks")] == ["k-a", "k-b"]


async def test_a_single_worker_gets_a_task_again_that_failed_there(replayed: Replayed) -> None:
    site = replayed.site
    async with client(site) as here:
        async with OriginalWorker(url=site.redis, worker_id="o-a", results=site.results, fail=["CUDA error"]) as only:
            task_id = await here.submit(SPEC)
            waiting = await here.until(task_id, status="WAITING", error="CUDA error")
            record = await here.until(task_id, status="DONE")
        assert len(only.got) == 2
    assert waiting["next_retry_at"] is not None
    assert (waiting["retries"], waiting["last_failed_worker"]) == (1, "o-a")
    assert (record["retries"], record["attempts"], record["error"]) == (1, 2, None)
    events = [(message["type"], message.get("error")) for message in here.messages("tasks.events")]
    assert events == [("TASK_FAILED", "CUDA error"), ("TASK_SUCCEEDED", None)]
