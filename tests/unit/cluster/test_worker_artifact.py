"""The workers as people see them: the Prefect artifact, and `mloc workers` on a site without an endpoint."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from mloc_prefect.cli.client import worker_lookup as module
from mloc_prefect.cluster.worker_artifact import KEY, WorkerArtifact, listed, roster_markdown
from mloc_prefect.cluster.worker_card import Busy, WorkerCard
from mloc_prefect.errors import DispatchError
from tests.support.cards import card

RUN = str(UUID(int=7))
BUSY = card(
    "lab",
    "a100:80",
    "a100:80",
    tags=("lab",),
    leases=(Busy(holder="train:s1", devices=("gpu:0",)), Busy(holder="ask", devices=("gpu:1",))),
    models=("org/model",),
    runs=(RUN,),
)


def test_the_page_shows_hardware_leases_models_and_runs() -> None:
    roots = card("roots", role="coordinator")
    leaving = card("leaving", draining=True)
    text = roster_markdown([BUSY, roots, leaving])
    head, _, busy, second, third = text.splitlines()[2:]
    assert head == "| worker | pool | state | hardware | tags | leases | warm models | runs |"
    for part in (
        "lab",
        "at work",
        "8 cpu, 64 GiB, 2x a100 80 GiB",
        "gpu:0: train:s1<br>gpu:1: ask",
        "org/model",
        RUN[:8],
    ):
        assert part in busy
    assert "root runs only" in second
    assert "takes no more" in third
    assert "No worker is online." in roster_markdown([])


class Server:
    """As much of Prefect's API as the roster uses: artifacts and variables."""

    def __init__(self, *cards: WorkerCard) -> None:
        self.artifacts: dict[str, str] = {}
        self.steps: list[str] = []
        self.cards = cards

    async def create_artifact(self, create: Any) -> Any:
        self.steps.append("create")
        found = uuid4()
        self.artifacts[str(found)] = create.data
        assert create.key == KEY
        return SimpleNamespace(id=found)

    async def request(self, method: str, path: str, json: Any = None) -> Any:
        answer = self.answer(method, path, json)
        if answer is None:
            response = httpx.Response(404, request=httpx.Request(method, f"http://test{path}"))
            raise PrefectHTTPStatusError("no", request=response.request, response=response)
        return SimpleNamespace(content=b"x", json=lambda: answer)

    def answer(self, method: str, path: str, body: Any) -> Any:
        if path == "/variables/filter":
            now = datetime.now(UTC).isoformat()
            return [{"name": "mloc_worker_x", "value": c.to_json(), "updated": now} for c in self.cards]
        if path == "/artifacts/latest/filter":
            latest = next(reversed(self.artifacts), None)
            return [{"id": "of the collection", "latest_id": latest}] if latest else []
        name = path.rsplit("/", 1)[-1]
        if name not in self.artifacts:
            return None
        self.steps.append("change")
        self.artifacts[name] = body["data"]
        return {"ok": True}


async def test_the_artifact_is_made_once_and_changed_in_place() -> None:
    server = Server()
    roster = WorkerArtifact(server)  # type: ignore[arg-type]
    await roster.show([BUSY])
    await roster.show([BUSY])
    await roster.show([])
    assert server.steps == ["create", "change"]
    await WorkerArtifact(server).show([BUSY])  # type: ignore[arg-type] # of another worker
    assert server.steps == ["create", "change", "change"]
    roster.forget()
    await roster.show([])
    assert "No worker" in next(reversed(server.artifacts.values()))
    server.artifacts.clear()  # somebody deleted it
    await roster.show([card("new")])
    assert server.steps[-1] == "create"
    assert [text for text in server.artifacts.values() if "new" in text]


async def test_of_two_artifacts_the_one_that_prefect_shows_is_changed() -> None:
    server, late = Server(), uuid4()
    roster = WorkerArtifact(server)  # type: ignore[arg-type]
    await roster.show([BUSY])
    server.artifacts[str(late)] = "of another that started at the same time"
    await roster.show([card("new")])
    assert "new" in server.artifacts[str(late)]


async def test_the_list_has_the_form_of_the_endpoints() -> None:
    (found,) = await listed(Server(BUSY))  # type: ignore[arg-type]
    assert (found["worker_id"], found["status"], found["stale"]) == ("lab", "RUNNING", False)
    assert [gpu["name"] for gpu in found["hardware"]["gpu"]["gpus"]] == ["a100", "a100"]
    assert found["at_work"]["leases"][0] == {"holder": "train:s1", "devices": ["gpu:0"]}
    json.dumps(found)


@pytest.mark.parametrize("configured", [True, False])
def test_only_without_a_configured_endpoint_prefect_is_asked(monkeypatch: pytest.MonkeyPatch, configured: bool) -> None:
    if configured:
        monkeypatch.setenv("MLOC_URL", "http://127.0.0.1:9")
    else:
        monkeypatch.setattr("mloc_prefect.client.sync_client.MlocClient.configured", _nobody)
    monkeypatch.setattr(module, "_in_prefect", lambda _home: [{"worker_id": "lab"}])
    if configured:
        with pytest.raises(DispatchError):
            module.find_workers()
    else:
        assert module.find_workers() == [{"worker_id": "lab"}]


def _nobody(_: Any) -> Any:
    raise DispatchError("nobody answers")
