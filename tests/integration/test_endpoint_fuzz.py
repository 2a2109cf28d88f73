"""What a generator of requests makes of the OpenAPI document: never a 5xx, and only documented answers.

On a real Valkey, which takes less than the twin in memory does.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance
from starlette.testclient import TestClient

from mloc_prefect.server.application import create_app
from mloc_prefect.server.worker_cache import WorkerCache
from mloc_prefect.settings import get_settings
from mloc_prefect.store.backends import memory_stores, open_stores
from tests.support.counts import count
from tests.support.endpoint import add_worker, spec
from tests.support.valkey import embedded_valkey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fastapi import FastAPI
    from starlette.types import Receive, Scope, Send

EXAMPLES = count("fuzz", small=25, full=1000)
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance]
KNOWN = {"task_id": "t", "filename": "responses.json", "worker_id": "w-a"}
HERE = "http://127.0.0.1"  # to other names it does not answer
ENDLESS = "/api/v1/events"  # its answer has no end; see test_endpoint.py


class OnValkey:
    """An endpoint with a worker and a task that left a log and a result; each request comes in its own event loop."""

    def __init__(self, home: Path, url: str) -> None:
        in_force = get_settings(home=home, max_upload_bytes=100_000, host="127.0.0.1")  # for the client's own Host
        self._app, self._url = create_app(memory_stores(), in_force), url
        directory = in_force.results_root / "t"
        (directory / "logs").mkdir(parents=True)
        (directory / "logs" / "stage.log").write_text("one\ntwo\n")
        (directory / "responses.json").write_text("{}")
        asyncio.run(self._register())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        stores, state = open_stores(self._url), self._app.state
        state.endpoint = replace(state.endpoint, stores=stores, fleet=WorkerCache(stores.workers))
        try:
            await self._app(scope, receive, send)
        finally:
            await stores.close()

    async def _register(self) -> None:
        stores = open_stores(self._url)
        await add_worker(stores, ttl=24 * 3600)
        await stores.close()


def document() -> FastAPI:
    """Return an endpoint that can tell its routes."""
    return create_app(memory_stores(), get_settings())


OPERATIONS = sorted(
    (method, path) for path, methods in document().openapi()["paths"].items() for method in methods if path != ENDLESS
)


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[schemathesis.BaseSchema]:
    home = tmp_path_factory.mktemp("fuzz")
    with embedded_valkey(home, port=26629) as valkey:
        yield schemathesis.openapi.from_asgi("/openapi.json", OnValkey(home, valkey.url()))


@pytest.mark.counted
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_breaks_it(schema, method, path):
    operation = schema[path][method.upper()]
    right, wrong = (
        operation.as_strategy(generation_mode=mode) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    )

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(case=right | wrong if operation.body or operation.query else right, known=st.booleans())
    def ask(case, known):
        if known:  # else nearly all that is asked for does not exist
            case.path_parameters = {name: KNOWN[name] for name in case.path_parameters or {}}
        answer = case.call_and_validate(base_url=HERE, checks=CHECKS)
        assert answer.status_code != 403, answer.text  # else nothing of it is tried

    ask()


PATCHED = "/api/v1/results/t/files/rest.zip"
BODIES = (
    "/api/v1/tasks",
    "/api/v1/tasks/validate",
    "/api/v1/results",
    "/api/v1/results/t/files",
    PATCHED,
    "/workers/w-a/elastic",
)
NUMBERS = st.sampled_from(["0", "1", "7", "-1", "x", "9" * 18, "9" * 30, ""])
DIGESTS = st.sampled_from([hashlib.sha256(b"").hexdigest(), "0" * 64, "x"])
UPLOAD = st.fixed_dictionaries(
    {"upload-offset": st.just("0") | NUMBERS, "upload-length": NUMBERS}, optional={"upload-digest": DIGESTS}
)
KINDS = st.sampled_from(
    [
        "text/yaml",
        "application/json",
        "application/vnd.x+json",
        "multipart/form-data; boundary=x",
        "x",
        "",
        "a/b; c=\xff",
    ]
)
WORDS = rb"""{ } [ ] " : , yaml task_id result enabled true 1e999 NaN \u \ud800 --x-- &a *a << !!python/name:os"""
LINES = [b"${a.b}", b"2001-01-01", b"\xff", b"\0", b"--x\r\n", b"\r\n\r\n", b"\n  ", b"- ", b"? ", b"| ", b"%YAML 9.9"]
FIELD = b'Content-Disposition: form-data; name="file"; filename="y"'
PIECES = st.sampled_from([*WORDS.split(), *LINES, FIELD])


@pytest.mark.counted
@pytest.mark.parametrize("path", BODIES)
def test_no_bytes_break_it(schema, path):
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(
        pieces=st.lists(PIECES | st.binary(max_size=8), max_size=12), kind=KINDS, key=st.text(max_size=5), upload=UPLOAD
    )
    def post(pieces, kind, key, upload):
        headers = {"content-type": kind.encode("latin-1"), "idempotency-key": key.encode()}
        headers |= {name: value.encode() for name, value in upload.items()} if path == PATCHED else {}
        with TestClient(schema.app, HERE, raise_server_exceptions=False) as client:
            method = "PATCH" if path == PATCHED else "POST"
            answer = client.request(method, path, content=b"".join(pieces), headers=headers)
        assert answer.status_code < 500, answer.text
        assert answer.status_code != 403, answer.text
        assert answer.status_code < 400 or "detail" in answer.json()

    post()


DEEP = 950
ODD = [
    "",
    "\ud800",
    "a\0b",
    "x" * 300,
    1,
    None,
    True,
    math.inf,
    [],
    {},
    {"\ud800": "a"},
    {"a": "\ud800"},
    ["\ud800"],
    "deep",
]
RESULT = {"task_id": "t", "worker_id": "w", "metadata": {}, "received_at": "now", "result": {}}
SUBMISSION = {"yaml": spec(), "parameters": {"t": "x"}}
SPECS = [{"yaml": spec(**{name: value})} for name in ("name", "dependsOn", "parallel", "data") for value in ODD]


@pytest.mark.parametrize(
    ("path", "whole", "others"),
    [
        ("/api/v1/tasks", SUBMISSION, SPECS),
        ("/api/v1/tasks/validate", SUBMISSION, SPECS),
        ("/api/v1/results", RESULT, []),
        ("/workers/w-a/elastic", {"enabled": True}, []),
    ],
)
def test_no_value_breaks_it(schema, path, whole, others):
    """JSON that can be read, with values that not everything behind the endpoint takes."""
    changed = [whole | {name: value} for name in whole for value in ODD]
    with TestClient(schema.app, HERE, raise_server_exceptions=False) as client:
        for value in [whole, *ODD, *changed, *others]:
            body = json.dumps(value).replace('"deep"', "[" * DEEP + "]" * DEEP)
            answer = client.post(path, content=body, headers={"content-type": "application/json"})
            assert answer.status_code < 500, (value, answer.text)
            assert answer.status_code == 200 or "detail" in deep_json(answer.text)
            assert answer.status_code == 200 or value is not whole


def deep_json(text: str) -> Any:
    """Read JSON that nests as deep as the endpoint accepts, from a test that is called deep itself."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(2 * limit)
    try:
        return json.loads(text)
    finally:
        sys.setrecursionlimit(limit)
