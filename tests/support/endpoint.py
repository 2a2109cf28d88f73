"""The HTTP endpoint on in-memory stores, without a socket."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from mloc_prefect.server.application import create_app
from mloc_prefect.settings import get_settings
from mloc_prefect.store.backends import Stores, memory_stores
from mloc_prefect.store.records import WorkerRecord

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fastapi import FastAPI

HARDWARE = {
    "cpu": {"logical_cores": 8, "model": "x86_64"},
    "memory": {"total_bytes": 32 << 30},
    "gpu": {"driver_version": None, "cuda_version": None, "gpus": []},
    "network": {"ip": "127.0.0.1"},
}
YAML = {"content-type": "text/yaml"}
SPEC = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: hello}
spec:
  taskType: echo
  resources: {replicas: 1, hardware: {cpu: "2", memory: 4Gi}}
"""


@dataclass(frozen=True)
class Served:
    """An endpoint, its stores, and a client that knows its address."""

    app: FastAPI
    stores: Stores
    client: httpx.AsyncClient
    results: Path

    async def submit(self, spec: str = SPEC, **query: Any) -> dict[str, Any]:
        """Submit a spec that must be accepted; return the response."""
        answer = await self.client.post("/api/v1/tasks", content=spec, headers=YAML, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def one(self, spec: str = SPEC) -> str:
        """Submit a spec; return the id of its first task."""
        return (await self.submit(spec))["tasks"][0]["task_id"]


@asynccontextmanager
async def served(home: Path, *, stores: Stores | None = None, **settings: Any) -> AsyncIterator[Served]:
    """Serve from `home` under the host name that the client uses; `settings` are those of the project."""
    stores = stores or memory_stores()
    in_force = get_settings(home=home, **({"host": "endpoint"} | settings))
    app = create_app(stores, in_force)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
        yield Served(app, stores, client, in_force.results_root)


async def add_worker(stores: Stores, worker_id: str = "w-a", *, ttl: float = 60, **changes: Any) -> None:
    """Register a live worker with 8 cores, 32 GiB and no GPU."""
    await stores.workers.register(
        WorkerRecord(**{"worker_id": worker_id, "status": "IDLE", "hardware": HARDWARE, **changes}), ttl=ttl
    )


def spec(name: str = "hello", **fields: Any) -> str:
    """Return a valid echo spec with further fields of `spec`, as JSON, which is also YAML."""
    import json

    resources = {"replicas": 1, "hardware": {"cpu": "2", "memory": "4Gi"}}
    return json.dumps(
        {
            "apiVersion": "mloc/v1",
            "kind": "EchoTask",
            "metadata": {"name": name},
            "spec": {"taskType": "echo", "resources": resources, **fields},
        }
    )


def hardware(**fields: Any) -> str:
    """Return a valid echo spec with further fields of `spec.resources.hardware`."""
    return spec(resources={"replicas": 1, "hardware": {"cpu": "2", "memory": "4Gi", **fields}})
