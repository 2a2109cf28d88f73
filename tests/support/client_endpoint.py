"""An endpoint in this process for the client commands."""

from __future__ import annotations

import hashlib
from typing import Any

import httpx
from typer.testing import CliRunner

from mloc_prefect.cli.app import app
from mloc_prefect.client.sync_client import MlocClient

URL = "http://mloc.test:8000"
ONE, TWO, OTHER = (
    "5d1e7c2a-0000-4000-8000-000000000001",
    "5d1e7c2b-0000-4000-8000-000000000002",
    "77777777-0000-4000-8000-000000000003",
)
SUBMISSION = "abcdef00-0000-4000-8000-00000000000a"
SPEC = """
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: demo}
spec:
  taskType: echo
  resources: {replicas: 1, hardware: {cpu: 1, memory: 64Mi}}
  data: {message: hi}
"""


def record(task_id: str, status: str = "DONE", **more: Any) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "status": status,
        "submission_id": SUBMISSION,
        "parsed": {"metadata": {"name": "demo"}, "spec": {"taskType": "echo"}},
        "task_type": "echo",
        "attempts": 1,
        "max_attempts": 4,
        "error": None,
        **more,
    }


class Fake:
    """Answers like an endpoint; `records` change as a test goes on."""

    def __init__(self) -> None:
        self.records = {
            ONE: record(ONE, graph_node_name="first"),
            TWO: record(TWO, graph_node_name="second"),
            OTHER: record(OTHER, submission_id="ffffffff-0000-4000-8000-00000000000b"),
        }
        self.files: dict[str, bytes] = {}
        self.requests: list[httpx.Request] = []
        self.etags: dict[str, str] = {}
        self.page = 2

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        path = request.url.path
        if path == "/api/v1/tasks" and request.method == "GET":
            return self._list(request)
        if path.startswith("/api/v1/tasks/") and request.method == "GET":
            found = self.records.get(path.split("/")[4])
            return httpx.Response(200, json=found) if found else httpx.Response(404, json={"detail": "task not found"})
        if path.startswith("/api/v1/results/"):
            body = self.files.get(path.removeprefix("/api/v1/results/"))
            if body is None:
                return httpx.Response(404, json={"detail": "result not found"})
            return httpx.Response(200, content=body, headers={"ETag": f'"{self.etags.get(path, digest(body))}"'})
        return httpx.Response(404, json={"detail": "Not Found"})

    def _list(self, request: httpx.Request) -> httpx.Response:
        parameters = request.url.params
        wanted = parameters.get("submission_id")
        found = [r for r in self.records.values() if wanted in {None, r["submission_id"]}]
        if "limit" not in parameters:
            return httpx.Response(200, json=found)
        start = int(parameters.get("after", 0))
        headers = {}
        if start + self.page < len(found):
            headers["Link"] = f'</api/v1/tasks?limit=2&after={start + self.page}>; rel="next"'
        return httpx.Response(200, json=found[start : start + self.page], headers=headers)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def answering(handler: Any, token: str | None = None, **more: Any) -> MlocClient:
    return MlocClient(URL, token, transport=httpx.MockTransport(handler), **more)


def mloc(*arguments: str, **more: Any):
    return CliRunner().invoke(app, arguments, **more)
