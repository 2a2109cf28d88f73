"""What a generator of requests makes of the OpenAPI document: never a 5xx, and only documented answers."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance
from starlette.testclient import TestClient

from mloc_prefect.bridge.stores import memory_stores
from mloc_prefect.server.app import create_app
from mloc_prefect.settings import get_settings
from tests.support.counts import count
from tests.support.endpoint import add_worker

if TYPE_CHECKING:
    from pathlib import Path

    from fastapi import FastAPI

EXAMPLES = count("fuzz", small=25, full=1000)
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance]
KNOWN = {"task_id": "t", "filename": "responses.json", "worker_id": "w-a"}
ENDLESS = "/api/v1/events"  # its answer has no end; see test_endpoint.py


def make(home: Path | None = None) -> FastAPI:
    """Return an endpoint with a worker and a task that left a log and a result."""
    in_force = get_settings(home=home, max_upload_bytes=100_000, host="127.0.0.1")  # for the client's own Host
    stores = memory_stores()
    asyncio.run(add_worker(stores))
    if home is not None:
        directory = in_force.results_root / "t"
        (directory / "logs").mkdir(parents=True)
        (directory / "logs" / "stage.log").write_text("one\ntwo\n")
        (directory / "responses.json").write_text("{}")
    return create_app(stores, in_force)


OPERATIONS = sorted(
    (method, path) for path, methods in make().openapi()["paths"].items() for method in methods if path != ENDLESS
)


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory):
    return schemathesis.openapi.from_asgi("/openapi.json", make(tmp_path_factory.mktemp("fuzz")))


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
        case.call_and_validate(checks=CHECKS)

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
WORDS = rb"""{ } [ ] " : , yaml task_id result enabled true 1e999 NaN \u --x-- &a *a << !!python/name:os"""
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
        with TestClient(schema.app, raise_server_exceptions=False) as client:
            method = "PATCH" if path == PATCHED else "POST"
            answer = client.request(method, path, content=b"".join(pieces), headers=headers)
        assert answer.status_code < 500, answer.text
        assert answer.status_code < 400 or "detail" in answer.json()

    post()
