"""Archives on their way to an http destination, without a network."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from mloc_prefect.artifacts.transfer import artifact_upload as module
from mloc_prefect.artifacts.transfer.artifact_upload import upload_files
from mloc_prefect.artifacts.transfer.delivery import HttpDestination
from mloc_prefect.artifacts.transfer.outgoing import LONGEST_WAIT, AllowedHosts, DeliveryError

HOST = AllowedHosts(frozenset({"mloc.example"}))
DATA = bytes(range(256)) * 9000
SHA = hashlib.sha256(DATA).hexdigest()


class Endpoint:
    """Takes uploads as MLOC's endpoint does."""

    def __init__(self, *answers: int, etag: bool = True) -> None:
        self.answers = list(answers)
        self.etag = etag
        self.retry_after = ""
        self.files: dict[str, bytes] = {}
        self.requests: list[httpx.Request] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.method == "HEAD":
            data = self.files.get(request.url.path)
            tag = hashlib.sha256(data).hexdigest() if data is not None else None
            known = self.etag and tag and request.headers["If-None-Match"] == f'"{tag}"'
            return httpx.Response(304 if known else 404 if data is None else 200)
        body = await request.aread()
        assert len(body) == int(request.headers["Content-Length"])
        status = self.answers.pop(0) if self.answers else 200
        if status == 200:
            boundary = request.headers["Content-Type"].partition("boundary=")[2].encode()
            head, _, rest = body.partition(b"\r\n\r\n")
            assert b'name="file"; filename="final_model.zip"' in head
            name = request.url.path + "/final_model.zip"
            self.files[name] = rest.removesuffix(b"\r\n--" + boundary + b"--\r\n")
        headers = {"Retry-After": self.retry_after} if status >= 400 and self.retry_after else {}
        return httpx.Response(status, text="no" if status >= 400 else "{}", headers=headers)


@pytest.fixture
def result(tmp_path: Path) -> Path:
    archive = tmp_path / "final_model.zip"
    archive.write_bytes(DATA)
    content = {"ok": 1, "final_model_archive_path": str(archive), "final_model_archive_sha256": SHA}
    (tmp_path / "result.json").write_text(json.dumps(content))
    return tmp_path / "result.json"


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(module, "_sleep", sleep)
    return waited


async def send(result: Path, endpoint: Endpoint, **headers: str) -> tuple[list[str], dict[str, Any]]:
    destination = HttpDestination("https://mloc.example/api/v1/results/", headers=headers)
    problems = await upload_files(
        result, destination, task_id="a b", allowed=HOST, transport=httpx.MockTransport(endpoint)
    )
    return problems, json.loads(result.read_text())


async def test_the_url_is_put_into_the_result(result: Path) -> None:
    endpoint = Endpoint()
    problems, content = await send(result, endpoint, Authorization="Bearer t", **{"Content-Type": "application/json"})
    assert problems == []
    assert content["final_model_archive_url"] == "https://mloc.example/api/v1/results/a%20b/files/final_model.zip"
    assert list(endpoint.files.values()) == [DATA]
    post = endpoint.requests[-1]
    assert post.headers["Authorization"] == "Bearer t"
    assert post.headers["Content-Type"].startswith("multipart/form-data; boundary=")


@pytest.mark.parametrize("divided", [False, True])
async def test_an_export_gets_its_url(tmp_path: Path, divided: bool) -> None:
    file = tmp_path / "out" / "final_model.zip"  # the stand-in knows this name only
    file.parent.mkdir()
    file.write_bytes(DATA)
    export = {"jsonl_export": {"path": str(file), "sha256": SHA, "record_count": 2}}
    (tmp_path / "result.json").write_text(json.dumps({"result": {"merged": export}} if divided else export))
    endpoint = Endpoint()
    _, content = await send(tmp_path / "result.json", endpoint)
    told = (content["result"]["merged"] if divided else content)["jsonl_export"]
    assert told["url"] == "https://mloc.example/api/v1/results/a%20b/files/final_model.zip"
    assert list(endpoint.files.values()) == [DATA]
    told.pop("url")
    (tmp_path / "result.json").write_text(json.dumps({"jsonl_export": told}))
    _, content = await send(tmp_path / "result.json", Endpoint(404))
    assert "url" not in content["jsonl_export"]
    assert "status 404" in content["jsonl_export"]["error"]


async def test_what_is_there_is_not_sent_again(result: Path) -> None:
    endpoint = Endpoint()
    await send(result, endpoint)
    content = json.loads(result.read_text())
    del content["final_model_archive_url"]
    result.write_text(json.dumps(content))
    _, content = await send(result, endpoint)
    assert [r.method for r in endpoint.requests] == ["HEAD", "POST", "HEAD"]
    assert content["final_model_archive_url"]
    await send(result, endpoint)
    assert len(endpoint.requests) == 3, "a result that has its URL needs nothing"


async def test_a_failing_destination_is_tried_again(result: Path, pauses: list[float]) -> None:
    endpoint = Endpoint(503, 500)
    _, content = await send(result, endpoint)
    assert content["final_model_archive_url"]
    assert pauses == [0.5, 1.0]
    with pytest.raises(DeliveryError, match="status 503: no") as caught:
        content.pop("final_model_archive_url")
        result.write_text(json.dumps(content))
        endpoint.files.clear()
        endpoint.answers = [503] * 9
        await send(result, endpoint)
    assert caught.value.retryable


@pytest.mark.parametrize(("asked", "waits"), [("3", 3.0), ("86400", LONGEST_WAIT), ("0", 0.5)])
async def test_a_busy_destination_is_not_asked_before_it_said(
    result: Path, pauses: list[float], asked: str, waits: float
) -> None:
    endpoint = Endpoint(429)
    endpoint.retry_after = asked
    await send(result, endpoint)
    assert pauses == [waits]


async def test_a_refusal_only_leaves_the_url_out(result: Path) -> None:
    problems, content = await send(result, Endpoint(413))
    assert len(problems) == 1
    assert "final_model_archive_url" not in content
    assert content["final_model_archive_error"] == problems[0]
    assert "status 413" in problems[0]


async def test_other_hosts_are_not_called(result: Path) -> None:
    endpoint = Endpoint()
    destination = HttpDestination("https://elsewhere.example/r")
    problems = await upload_files(
        result, destination, task_id="t", allowed=HOST, transport=httpx.MockTransport(endpoint)
    )
    assert "host 'elsewhere.example'" in problems[0]
    assert endpoint.requests == []


@pytest.mark.parametrize("content", [{"ok": True}, [1], {"final_model_archive_path": "/nowhere/x.zip"}])
async def test_other_results_are_left_alone(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(content))
    endpoint = Endpoint()
    assert (await send(path, endpoint))[1] == content
    assert endpoint.requests == []


async def test_files_outside_of_the_task_are_not_sent(tmp_path: Path, result: Path) -> None:
    endpoint = Endpoint()
    send: dict[str, Any] = {"task_id": "t1", "allowed": HOST, "transport": httpx.MockTransport(endpoint)}
    other = tmp_path / "task"
    other.mkdir()
    (other / "link.zip").symlink_to(tmp_path / "final_model.zip")
    for named in (tmp_path / "final_model.zip", other / "link.zip", other / ".." / "final_model.zip"):
        result.write_text(json.dumps({"final_model_archive_path": str(named)}))
        destination = HttpDestination("https://mloc.example/results")
        assert await upload_files(result, destination, folder=other, **send) == []
        assert "final_model_archive_url" not in json.loads(result.read_text())
    assert endpoint.requests == []
