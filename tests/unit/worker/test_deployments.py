"""The pool and the deployments that our runs go through."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from mloc_prefect.cluster import deployments
from mloc_prefect.cluster.deployments import RUN_STAGE, RUN_WORKFLOW, ensure_deployment
from mloc_prefect.errors import DispatchError
from mloc_prefect.process.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable


class Server:
    """As much of Prefect's API as this uses: pools, flows, deployments."""

    def __init__(self) -> None:
        self.pools: set[str] = set()
        self.deployments: dict[str, dict[str, Any]] = {}
        self.others: dict[str, Callable[[Any], Any]] = {}  # what another process did a moment before such a request
        self.asked: list[str] = []

    async def request(self, method: str, path: str, json: Any = None) -> Any:
        self.asked.append(f"{method} {path}")
        conflict = self.others.pop(f"{method} {path}", None)
        if conflict is not None:
            conflict(json)
        answer = None if conflict is not None else self.answer(method, path, json)
        if answer is None:
            status = 404 if conflict is None else 409
            response = httpx.Response(status, request=httpx.Request(method, f"http://test{path}"))
            raise PrefectHTTPStatusError("no", request=response.request, response=response)
        return SimpleNamespace(content=b"x", json=lambda: answer)

    def answer(self, method: str, path: str, body: Any) -> Any:
        if path.startswith("/work_pools/"):
            if method == "POST":
                self.pools.add(body["name"])
            return {} if method == "POST" or path.rsplit("/", 1)[-1] in self.pools else None
        if path.startswith("/flows/name/"):
            return {"id": path.rsplit("/", 1)[-1]}
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


@pytest.mark.parametrize("late", [("POST /flows/",), ("POST /deployments/",), ("POST /flows/", "POST /deployments/")])
async def test_two_that_start_on_a_new_database_have_one_deployment(late: tuple[str, ...]) -> None:
    server = Server()

    def other(body: Any) -> None:
        if "entrypoint" in body:
            server.answer("POST", "/deployments/", body)

    server.others = dict.fromkeys(late, other)
    first = await server.ensure(RUN_WORKFLOW, "gpu")
    assert await server.ensure(RUN_WORKFLOW, "gpu") == first
    assert list(server.deployments) == ["run-workflow/mloc"]


async def test_what_is_deleted_and_created_at_the_same_time_is_created_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployments, "_CONFLICT_WAITS", Backoff(first=0.0))
    server = Server()
    server.others["POST /deployments/"] = lambda _body: None  # a conflict with one that is gone a moment later
    await server.ensure(RUN_WORKFLOW, "gpu")
    assert server.asked.count("POST /deployments/") == 2


async def test_a_server_that_never_has_the_deployment_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployments, "_CONFLICT_WAITS", Backoff(first=0.0))
    server = Server()
    monkeypatch.setattr(server, "answer", lambda _method, path, _body: {} if path.startswith("/work_pools/") else None)
    with pytest.raises(DispatchError, match="run-workflow/mloc cannot be created"):
        await server.ensure(RUN_WORKFLOW, "gpu")


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
