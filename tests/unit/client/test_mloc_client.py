"""Both clients against an endpoint in this process: the same answers, errors and requests."""

from __future__ import annotations

import asyncio
import inspect
import json
import traceback
from pathlib import Path
from typing import Any

import httpx
import pytest

from mloc_prefect import AsyncMlocClient, MlocClient
from mloc_prefect.client.errors import (
    AccessError,
    NotFoundError,
    RefusedConflictError,
    RefusedRequestError,
    RefusedSpecError,
    UnreachableError,
    WaitTimeoutError,
)
from mloc_prefect.errors import ArtifactError, ConflictError, DispatchError, MlocError, SpecError, UsageError
from tests.support.client_endpoint import ONE, SPEC, SUBMISSION, TWO, URL, Fake, digest
from tests.unit.house.test_import_contract import loaded, tops

TOKEN = "s3cret-token"
KINDS = (MlocClient, AsyncMlocClient)


def call(kind: type, handler: Any, method: str, *arguments: Any, token: str | None = TOKEN, **named: Any) -> Any:
    """Return what a method of a client returns, or all that it yields."""

    async def rest(_seconds: float) -> None: ...

    if kind is MlocClient:
        client = MlocClient(URL, token, transport=httpx.MockTransport(handler), sleep=lambda _: None)
        found = getattr(client, method)(*arguments, **named)
        return list(found) if inspect.isgenerator(found) else found

    async def run() -> Any:
        async with AsyncMlocClient(URL, token, transport=httpx.MockTransport(handler), sleep=rest) as client:
            found = getattr(client, method)(*arguments, **named)
            return [one async for one in found] if inspect.isasyncgen(found) else await found

    return asyncio.run(run())


def test_both_clients_have_the_same_methods_and_arguments():
    for name, method in inspect.getmembers(MlocClient, inspect.isfunction):
        if not name.startswith("_"):
            other = inspect.signature(getattr(AsyncMlocClient, name))
            assert list(inspect.signature(method).parameters.values()) == list(other.parameters.values()), name
            assert getattr(AsyncMlocClient, name).__doc__, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("status", "detail", "error"),
    [
        (401, "Missing bearer token", AccessError),
        (403, "Invalid token", AccessError),
        (404, "task not found", NotFoundError),
        (404, "Not Found", DispatchError),
        (409, "the task has ended: it is DONE", RefusedConflictError),
        (413, "too large", RefusedRequestError),
        (422, [{"msg": "Field required"}], RefusedRequestError),
        (500, "odd", MlocError),
        (503, "Redis is away", UnreachableError),
        (307, "elsewhere", MlocError),
    ],
)
def test_an_error_has_its_type_and_never_the_token(kind, status, detail, error):
    with pytest.raises(error) as caught:
        call(kind, lambda _: httpx.Response(status, json={"detail": detail}), "workers")
    assert type(caught.value) is error
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + str(vars(caught.value))
    assert TOKEN not in told
    assert caught.value.message


def test_errors_are_those_of_the_package_too():
    assert issubclass(RefusedSpecError, SpecError)
    assert issubclass(RefusedConflictError, ConflictError)
    assert issubclass(NotFoundError, UsageError)


@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_is_an_error_of_its_own(kind):
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(UnreachableError, match="does not answer: refused"):
        call(kind, refuse, "status", ONE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_spec_brings_its_diagnostics(kind):
    row = {
        "severity": "error",
        "line": 6,
        "column": 13,
        "code": "unknown-task-type",
        "path": "spec.taskType",
        "message": "no such task type",
        "found": "'eco'",
        "suggestion": "did you mean 'echo'?",
    }
    body = {"detail": "no such task type at line 6, column 13", "diagnostics": [row, "odd", {"line": "x"}]}
    with pytest.raises(RefusedSpecError) as caught:
        call(kind, lambda _: httpx.Response(400, json=body), "submit", SPEC)
    first, other = caught.value.diagnostics
    assert (first.line, first.column, first.code, first.path) == (6, 13, "unknown-task-type", "spec.taskType")
    assert (first.found, first.suggestion) == ("'eco'", "did you mean 'echo'?")
    assert (other.line, other.code) == (0, "refused")
    assert "line 6, column 13" in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_shows_a_client_shows_neither_token_nor_password(kind):
    client = kind("http://me:pw@mloc.test:8000/", TOKEN)
    told = repr(client) + str(client) + client.url + repr(vars(client))
    assert (repr(client), client.url) == (f"{kind.__name__}({URL!r})", URL)
    assert TOKEN not in told
    assert "pw" not in told


@pytest.mark.parametrize("kind", KINDS)
def test_a_spec_is_a_text_a_file_or_a_mapping(kind, tmp_path):
    sent: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200, json={"ok": True, "tasks": []})

    file = tmp_path / "task.yaml"
    file.write_text(SPEC)
    call(kind, handle, "submit", SPEC, strict=True)
    call(kind, handle, "submit", file, idempotency_key="once")
    call(kind, handle, "submit", {"kind": "EchoTask"}, parameters={"who": "me"})
    call(kind, handle, "validate", SPEC)
    assert [request.content.decode() for request in sent[:2]] == [SPEC, SPEC]
    assert (sent[0].url.query, sent[1].headers["Idempotency-Key"]) == (b"strict=true", "once")
    assert json.loads(sent[2].content) == {"yaml": '{"kind": "EchoTask"}', "parameters": {"who": "me"}}
    assert sent[3].url.path == "/api/v1/tasks/validate"
    assert {request.headers["Authorization"] for request in sent} == {f"Bearer {TOKEN}"}
    for wrong, hint in (("task.yaml", "write Path"), (tmp_path / "none.yaml", "cannot read")):
        with pytest.raises(UsageError, match=hint):
            call(kind, handle, "submit", wrong)
    assert len(sent) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_ids_lists_and_results(kind):
    fake = Fake()
    fake.files = {ONE: b'{"result": {"items": [{"index": 0, "output": "a"}]}}'}
    assert [record["task_id"] for record in call(kind, fake, "status", SUBMISSION)] == [ONE, TWO]
    assert call(kind, fake, "task", "5d1e7c2b")["task_id"] == TWO
    with pytest.raises(UsageError, match="is a submission of 2 tasks"):
        call(kind, fake, "task", SUBMISSION)
    with pytest.raises(NotFoundError, match="knows no task"):
        call(kind, fake, "task", "zz")
    call(kind, fake, "list_tasks", status="DONE", limit=3, newest_first=True)
    assert str(fake.requests[-1].url.query, "ascii") == "status=DONE&limit=3&newest_first=true"
    for wanted in (ONE, "5d1e7c2a"):
        assert list(call(kind, fake, "result", wanted).rows()) == [{"index": 0, "output": "a"}]
    with pytest.raises(NotFoundError, match="task second has no result: it is DONE"):
        call(kind, fake, "result", TWO)


class Moving(Fake):
    """Moves the first task one step with each look at it."""

    def __init__(self, *steps: str) -> None:
        super().__init__()
        self.steps = list(steps)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith(ONE):
            step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
            if step == "away":
                raise httpx.ConnectError("refused", request=request)
            self.records[ONE]["status"] = step
        return super().__call__(request)


@pytest.mark.parametrize("kind", KINDS)
def test_watching_yields_changes_and_outlasts_an_outage(kind):
    told: list[str] = []
    steps = Moving("PENDING", "PENDING", "away", "away", "DISPATCHED", "FAILED")
    seen = call(kind, steps, "watch", [ONE, TWO], on_outage=told.append)
    assert [(record["task_id"], record["status"]) for record in seen] == [
        (ONE, "PENDING"),
        (TWO, "DONE"),
        (ONE, "DISPATCHED"),
        (ONE, "FAILED"),
    ]
    assert len(told) == 1
    ended = call(kind, Moving("away", "PENDING", "DONE"), "wait", ONE)
    assert [(record["task_id"], record["status"]) for record in ended] == [(ONE, "DONE")]
    with pytest.raises(NotFoundError):
        call(kind, Moving("DONE"), "wait", "zz")


@pytest.mark.parametrize("kind", KINDS)
def test_waiting_ends_in_time(kind):
    with pytest.raises(WaitTimeoutError, match="1 of 1 tasks have not ended: first 5d1e7c2a is PENDING"):
        call(kind, Moving("PENDING"), "wait", ONE, timeout=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_saved_whole_or_not_at_all(kind, tmp_path):
    fake = Fake()
    entries = [{"path": "artifacts/curve.png", "status": "present", "sha256": digest(b"png")}]
    fake.files = {
        ONE: b"{}",
        f"{ONE}/files/manifest.json": json.dumps({"entries": entries}).encode(),
        f"{ONE}/files/curve.png": b"png",
    }
    saved = call(kind, fake, "download", ONE, tmp_path / "good")
    assert saved == [tmp_path / "good" / "responses.json", tmp_path / "good" / "curve.png"]
    assert saved[1].read_bytes() == b"png"
    fake.etags = {f"/api/v1/results/{ONE}": "0" * 64}
    with pytest.raises(ArtifactError, match="SHA-256"):
        call(kind, fake, "download", ONE, tmp_path / "bad")
    assert list((tmp_path / "bad").iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_upload_is_a_form_with_the_name_of_the_file(kind, tmp_path):
    fake, bodies = Fake(), []

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method != "POST":
            return fake(request)
        bodies.append(request.content)
        return httpx.Response(200, json={"ok": True, "path": "/results/x"})

    file = tmp_path / "weights.bin"
    file.write_bytes(b"\x00\x01")
    assert call(kind, handle, "upload", "5d1e7c2a", file) == "/results/x"
    call(kind, handle, "upload", ONE, file, name="other.bin")
    assert [b'filename="weights.bin"' in bodies[0], b'filename="other.bin"' in bodies[1]] == [True, True]
    assert b"\x00\x01" in bodies[0]
    with pytest.raises(UsageError, match="cannot read"):
        call(kind, handle, "upload", ONE, Path("/none"))


def test_a_client_needs_neither_prefect_nor_redis():
    modules = loaded("from mloc_prefect import MlocClient, AsyncMlocClient; MlocClient.configured")
    assert tops(modules) & {"prefect", "redis", "fastapi", "pandas", "pyarrow"} == set()
