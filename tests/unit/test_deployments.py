"""The pool and the deployments that our runs go through."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from mloc_prefect.orchestrate.deployments import RUN_STAGE, RUN_WORKFLOW, ensure_deployment


class Server:
    """As much of Prefect's API as this uses: pools, flows, deployments."""

    def __init__(self) -> None:
        self.pools: set[str] = set()
        self.deployments: dict[str, dict[str, Any]] = {}

    async def request(self, method: str, path: str, json: Any = None) -> Any:
        answer = self.answer(method, path, json)
        if answer is None:
            response = httpx.Response(404, request=httpx.Request(method, f"http://test{path}"))
            raise PrefectHTTPStatusError("no", request=response.request, response=response)
        return SimpleNamespace(content=b"x", json=lambda: answer)

    def answer(self, method: str, path: str, body: Any) -> Any:
        if path.startswith("/work_pools/"):
            if method == "POST":
                self.pools.add(body["name"])
            return {} if method == "POST" or path.rsplit("/", 1)[-1] in self.pools else None
        if path == "/flows/":
            return {"id": body["name"]}
        if path.startswith("/deployments/name/"):
            return self.deployments.get(path.removeprefix("/deployments/name/"))
        if method == "PATCH":
            found = next(d for d in self.deployments.values() if d["id"] == path.rsplit("/", 1)[-1])
            found.update(body)
            return {}
        self.deployments[f"{body['flow_id']}/{body['name']}"] = body | {"id": str(uuid4())}
        return self.deployments[f"{body['flow_id']}/{body['name']}"]

    async def ensure(self, *arguments: Any, **options: Any) -> UUID:
        return await ensure_deployment(self, *arguments, **options)  # type: ignore[arg-type]


async def test_they_are_made_once() -> None:
    server = Server()
    first = await server.ensure(RUN_WORKFLOW, "gpu")
    assert await server.ensure(RUN_WORKFLOW, "gpu") == first
    assert (server.pools, list(server.deployments)) == ({"gpu"}, ["run-workflow/mloc"])
    assert server.deployments["run-workflow/mloc"]["work_queue_name"] == "coordinator"


async def test_a_worker_of_another_pool_takes_no_root_runs_away(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    await server.ensure(RUN_WORKFLOW, "gpu", move=False)
    with caplog.at_level(logging.WARNING):
        await server.ensure(RUN_WORKFLOW, "lab", move=False)
    assert server.deployments["run-workflow/mloc"]["work_pool_name"] == "gpu"
    assert server.pools == {"gpu", "lab"}
    assert "run-workflow/mloc sends its runs to work pool 'gpu'; this one is 'lab'" in caplog.text
    await server.ensure(RUN_WORKFLOW, "lab")  # whoever sends runs says where to
    assert server.deployments["run-workflow/mloc"]["work_pool_name"] == "lab"


async def test_stages_have_a_deployment_on_each_pool() -> None:
    server = Server()
    assert await server.ensure(RUN_STAGE, "gpu") != await server.ensure(RUN_STAGE, "lab")
    pools = {name: found["work_pool_name"] for name, found in server.deployments.items()}
    assert pools == {"run-stage/gpu": "gpu", "run-stage/lab": "lab"}
