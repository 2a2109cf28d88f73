"""Results and files: envelopes, names, ranges, limits. [protocol 1.4, 1.5]"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import re
import threading
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.artifacts.layout import safe_task_id
from mloc_prefect.artifacts.manifest import Manifest, commit_manifest, survey
from mloc_prefect.bridge.ports import TASK_EVENTS
from mloc_prefect.bridge.states import Mark, Phase
from mloc_prefect.server import digests, upload
from tests.support.endpoint import served

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

RESULTS = "/api/v1/results"
JSON = {"content-type": "application/json"}


async def test_an_envelope_is_stored_and_returned(tmp_path):
    async with served(tmp_path) as endpoint:
        posted = {"task_id": " free-form ", "worker_id": "w", "metadata": {"m": 1}, "result": {"x": "é"}, "other": 1}
        answer = await endpoint.client.post(RESULTS, json={**posted, "received_at": "yesterday"})
        path = endpoint.results / "free-form" / "responses.json"
        assert answer.json() == {"ok": True, "path": str(path)}
        assert '"é"' in path.read_text()
        assert path.read_text().startswith('{\n  "task_id"')
        got = await endpoint.client.get(f"{RESULTS}/%20free-form")
        assert got.json() == {
            "task_id": "free-form",
            "worker_id": "w",
            "metadata": {"m": 1},
            "received_at": "yesterday",
            "result": {"x": "é"},
        }
        assert list(got.json()) == ["task_id", "worker_id", "metadata", "received_at", "result"]
        same = await endpoint.client.get(f"{RESULTS}/free-form/files/responses.json")
        assert (same.json(), same.headers["content-type"]) == (got.json(), "application/json")
        await endpoint.client.post(RESULTS, json={"task_id": "free-form", "result": {}})
        again = (await endpoint.client.get(f"{RESULTS}/free-form")).json()
        assert (again["worker_id"], again["metadata"], again["result"]) == (None, None, {})
        assert datetime.fromisoformat(again["received_at"]).utcoffset() is not None


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        (b"", 422, [{"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}]),
        (b'{"task_id": "  ", "result": {}}', 400, "task_id is required"),
        (
            b'{"result": {}}',
            422,
            [
                {
                    "type": "missing",
                    "loc": ["body", "task_id"],
                    "msg": "Field required",
                    "input": {"result": {}},
                }
            ],
        ),
        (
            b'{"task_id": "a", "result": [1]}',
            422,
            [
                {
                    "type": "dict_type",
                    "loc": ["body", "result"],
                    "msg": "Input should be a valid dictionary",
                    "input": [1],
                }
            ],
        ),
        (
            b'{"task_id": 5, "result": {}}',
            422,
            [
                {
                    "type": "string_type",
                    "loc": ["body", "task_id"],
                    "msg": "Input should be a valid string",
                    "input": 5,
                }
            ],
        ),
        (
            b"[1]",
            422,
            [
                {
                    "type": "model_attributes_type",
                    "loc": ["body"],
                    "msg": "Input should be a valid dictionary or object to extract fields from",
                    "input": [1],
                }
            ],
        ),
    ],
)
async def test_bad_results(tmp_path, body, status, detail):
    async with served(tmp_path) as endpoint:
        answer = await endpoint.client.post(RESULTS, content=body, headers=JSON)
        assert (answer.status_code, answer.json()["detail"]) == (status, detail)
        assert not endpoint.results.exists()


@pytest.mark.parametrize("body", [b"{oops", b'"\xff"', b"[" * 100_000])
async def test_results_that_are_no_json(tmp_path, body):
    async with served(tmp_path) as endpoint:
        answer = await endpoint.client.post(RESULTS, content=body, headers=JSON)
        assert answer.status_code in {400, 422}


async def test_another_content_type_is_refused_as_the_original_does(tmp_path):
    async with served(tmp_path) as endpoint:
        text = '{"task_id":"a","result":{}}'
        answer = await endpoint.client.post(RESULTS, content=text, headers={"content-type": "text/yaml"})
        assert answer.status_code == 422
        assert answer.json()["detail"][0] == {
            "type": "model_attributes_type",
            "loc": ["body"],
            "msg": "Input should be a valid dictionary or object to extract fields from",
            "input": text,
        }


async def test_numbers_that_json_does_not_know_come_back(tmp_path):
    async with served(tmp_path) as endpoint:
        body = b'{"task_id": "nan", "result": {"loss": NaN, "s": "\\ud800"}}'
        assert (await endpoint.client.post(RESULTS, content=body, headers=JSON)).status_code == 200
        got = await endpoint.client.get(f"{RESULTS}/nan")
        assert (got.status_code, b"NaN" in got.content) == (200, True)
        assert r"\ud800" in got.content.decode(), "what is sent is UTF-8, in which half of a pair is an escape"


async def test_an_id_that_is_no_text_is_refused_before_anything_is_stored(tmp_path):
    async with served(tmp_path) as endpoint:
        answer = await endpoint.client.post(RESULTS, content=rb'{"task_id": "\ud800", "result": {}}', headers=JSON)
        assert (answer.status_code, "surrogate" in answer.json()["detail"]) == (400, True)
        assert not endpoint.results.exists()


async def test_what_nests_too_deep_to_be_shown_again_is_refused_all_the_same(tmp_path):
    """Answers are written a few frames deeper than bodies are read: the depths at which only that fails."""
    async with served(tmp_path) as endpoint:
        for depth in range(900, 1000):
            deep = "[" * depth + "]" * depth
            for path, body in (
                ("/api/v1/tasks", deep),
                (RESULTS, deep),
                (RESULTS, f'{{"task_id": {deep}, "result": {{}}}}'),
                ("/workers/w/elastic", deep),
            ):
                answer = await endpoint.client.post(path, content=body, headers=JSON)
                assert answer.status_code in {400, 422}, (depth, path)
                assert answer.json()["detail"]
            for size in (1, 70_000):  # the latter is read in a thread
                body = f'{{"task_id": "x", "result": {{"pad": "{"y" * size}", "a": {deep}}}}}'
                answer = await endpoint.client.post(RESULTS, content=body, headers=JSON)
                assert answer.status_code in {200, 400}, (depth, size)


@pytest.mark.parametrize(
    "task_id", ["../../etc/x y.z", "/etc/passwd", "..", ".", "a/b", "ü", "x" * 400, "a\0b", "~", "C:\\x"]
)
async def test_ids_stay_inside_and_apart(tmp_path, task_id):
    async with served(tmp_path) as endpoint:
        answer = await endpoint.client.post(
            RESULTS, content=json.dumps({"task_id": task_id, "result": {}}), headers=JSON
        )
        assert answer.status_code == 200, answer.text
        path = Path(answer.json()["path"])
        assert path == endpoint.results / safe_task_id(task_id) / "responses.json"
        assert path.is_file()
        assert json.loads(path.read_text("utf-8"))["task_id"] == task_id
        twin = re.sub(r"[^\w-]", "_", task_id)
        assert twin == task_id or not (endpoint.results / twin).exists(), "the twin of the original's rule is another"


async def test_what_is_not_there(tmp_path):
    async with served(tmp_path) as endpoint:
        lost = await endpoint.client.get(f"{RESULTS}/nobody")
        assert (lost.status_code, lost.json()) == (404, {"detail": "result not found"})
        blank = await endpoint.client.get(f"{RESULTS}/%20")
        assert (blank.status_code, blank.json()) == (400, {"detail": "task_id is required"})
        slash = await endpoint.client.get(f"{RESULTS}/a%2Fb")
        assert (slash.status_code, slash.json()) == (404, {"detail": "Not Found"})


async def test_files_that_others_wrote(tmp_path):
    async with served(tmp_path) as endpoint:
        for name, content in (("raw", b'{"ok": true, "items": []}'), ("broken", b"{not json"), ("bytes", b"\xff\xfe")):
            (endpoint.results / name).mkdir(parents=True)
            (endpoint.results / name / "responses.json").write_bytes(content)
        assert (await endpoint.client.get(f"{RESULTS}/raw")).content == b'{"ok": true, "items": []}'
        assert (await endpoint.client.get(f"{RESULTS}/broken")).json() == {"task_id": "broken", "raw": "{not json"}
        assert (await endpoint.client.get(f"{RESULTS}/bytes")).json()["task_id"] == "bytes"
        (endpoint.results / "folder" / "responses.json").mkdir(parents=True)
        unreadable = await endpoint.client.get(f"{RESULTS}/folder")
        assert (unreadable.status_code, unreadable.json()["detail"].startswith("Failed to read result: ")) == (
            500,
            True,
        )


@pytest.mark.parametrize("mark", [Mark(1, Phase.PENDING), Mark(1, Phase.STARTED), Mark(3, Phase.WAITING)])
async def test_a_posted_result_completes_the_task_once(tmp_path, mark):
    async with served(tmp_path) as endpoint:
        task_id = await endpoint.one()
        await endpoint.stores.tasks.transition(task_id, mark, {"error": "was bad", "next_retry_at": "soon"})
        for _ in range(2):
            assert (await endpoint.client.post(RESULTS, json={"task_id": task_id, "result": {}})).status_code == 200
        record = await endpoint.stores.tasks.get(task_id)
        assert record is not None
        assert (str(record.status), record.error, record.next_retry_at) == ("DONE", None, None)
        sent = [message for channel, message in endpoint.stores.publisher.sent if channel == TASK_EVENTS]  # type: ignore[attr-defined]
        assert [message["type"] for message in sent] == ["TASK_SUCCEEDED"]


async def test_workers_of_the_original_protocol_tell_of_their_success_themselves(tmp_path):
    async with served(tmp_path) as endpoint:
        task_id = await endpoint.one()
        await endpoint.stores.tasks.transition(task_id, Mark(1, Phase.STARTED), {"protocol": "original"})
        await endpoint.client.post(RESULTS, json={"task_id": task_id, "result": {}})
        record = await endpoint.stores.tasks.get(task_id)
        assert record is not None
        assert str(record.status) == "DONE"
        assert endpoint.stores.publisher.sent == []  # type: ignore[attr-defined]


async def test_a_result_of_our_own_stage_runner_only_lies_there(tmp_path):
    async with served(tmp_path) as endpoint:
        task_id = await endpoint.one()
        headers = {"X-MLOC-Stage-Run": "5e0d6b4e-0000-4000-8000-000000000000"}
        answer = await endpoint.client.post(RESULTS, json={"task_id": task_id, "result": {}}, headers=headers)
        assert answer.status_code == 200
        record = await endpoint.stores.tasks.get(task_id)
        assert record is not None
        assert str(record.status) == "WAITING"


async def test_a_terminal_record_does_not_reopen(tmp_path):
    async with served(tmp_path) as endpoint:
        task_id = await endpoint.one()
        await endpoint.stores.tasks.transition(task_id, Mark(4, Phase.FAILED), {"error": "no luck"})
        await endpoint.client.post(RESULTS, json={"task_id": task_id, "result": {}})
        record = await endpoint.stores.tasks.get(task_id)
        assert record is not None
        assert (str(record.status), record.error) == ("FAILED", "no luck")


async def test_a_large_result_is_refused(tmp_path):
    async with served(tmp_path, max_result_bytes=100) as endpoint:
        answer = await endpoint.client.post(RESULTS, json={"task_id": "t", "result": {"x": "y" * 100}})
        assert (answer.status_code, "100 bytes" in answer.json()["detail"]) == (413, True)


# Files


async def put(client: httpx.AsyncClient, name: str, content: bytes = b"z", task: str = "f1") -> httpx.Response:
    return await client.post(f"{RESULTS}/{task}/files", files={"file": (name, content)})


def body(*parts: tuple[str, bytes], boundary: str = "XX", end: bool = True) -> bytes:
    """Return a multipart body of parts, each a header line and its data."""
    text = b"".join(b"--%s\r\n%s\r\n\r\n%s\r\n" % (boundary.encode(), head.encode(), data) for head, data in parts)
    return text + (b"--%s--\r\n" % boundary.encode() if end else b"")


async def test_a_file_goes_up_and_comes_down(tmp_path):
    content = os.urandom(3_000_000) + b"\r\n--almost the boundary\r\n" + bytes(1000)
    async with served(tmp_path) as endpoint:
        answer = await put(endpoint.client, "final_model.zip", content, "new-id")
        path = endpoint.results / "new-id" / "final_model.zip"
        assert answer.json() == {"ok": True, "path": str(path)}
        assert path.read_bytes() == content
        got = await endpoint.client.get(f"{RESULTS}/new-id/files/final_model.zip")
        assert got.content == content
        sha = hashlib.sha256(content).hexdigest()
        assert (got.headers["content-type"], got.headers["etag"]) == ("application/zip", f'"{sha}"')
        assert got.headers["content-length"] == str(len(content))
        head = await endpoint.client.head(f"{RESULTS}/new-id/files/final_model.zip")
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(content)))
        assert list(path.parent.rglob("*.part")) == []


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", ".", "..", "", "x" * 256])
async def test_names_that_are_refused(tmp_path, name):
    async with served(tmp_path) as endpoint:
        part = (f'Content-Disposition: form-data; name="file"; filename="{name}"', b"z")
        headers = {"content-type": "multipart/form-data; boundary=XX"}
        up = await endpoint.client.post(f"{RESULTS}/f1/files", content=body(part), headers=headers)
        assert (up.status_code, up.json()) == (400, {"detail": "invalid filename"})
        assert not endpoint.results.exists()


@pytest.mark.parametrize("name", [r"a\b.txt", ".hidden", "sp ace.txt", "responses.json", "ü.txt", "x" * 255, "%41"])
async def test_names_that_are_taken(tmp_path, name):
    async with served(tmp_path) as endpoint:
        part = (f'Content-Disposition: form-data; name="file"; filename="{name}"'.replace("\\", "\\\\"), b"z")
        headers = {"content-type": "multipart/form-data; boundary=XX"}
        up = await endpoint.client.post(f"{RESULTS}/f1/files", content=body(part), headers=headers)
        assert up.json() == {"ok": True, "path": str(endpoint.results / "f1" / name)}
        from urllib.parse import quote

        got = await endpoint.client.get(f"{RESULTS}/f1/files/{quote(name, safe='')}")
        assert (got.status_code, got.content) == (200, b"z")


@pytest.mark.parametrize(
    ("name", "status", "detail"),
    [
        ("..", 400, "invalid filename"),
        ("%00", 400, "invalid filename"),
        ("a%00b", 400, "invalid filename"),
        ("x" * 300, 400, "invalid filename"),
        ("..%2Fx", 404, "Not Found"),
        ("a%2Fb", 404, "Not Found"),
        ("none", 404, "artifact not found"),
        ("logs", 404, "artifact not found"),
    ],
)
async def test_names_that_are_not_found(tmp_path, name, status, detail):
    async with served(tmp_path) as endpoint:
        (endpoint.results / "f1" / "logs").mkdir(parents=True)
        (endpoint.results / "x").write_text("secret")
        # A client would resolve `..` itself; this is what arrives from one that does not.
        scope_path = f"{RESULTS}/f1/files/{name}"
        answer = await raw_get(endpoint.app, scope_path)
        assert answer == (status, {"detail": detail})


async def raw_get(app, path: str) -> tuple[int, object]:
    from urllib.parse import unquote

    sent = []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
        "server": ("endpoint", 80),
        "client": ("here", 1),
        "root_path": "",
    }

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], json.loads(b"".join(m.get("body", b"") for m in sent[1:]))


async def test_a_blank_id(tmp_path):
    async with served(tmp_path) as endpoint:
        for answer in (
            await put(endpoint.client, "x", task="%20"),
            await endpoint.client.get(f"{RESULTS}/%20/files/x"),
        ):
            assert (answer.status_code, answer.json()) == (400, {"detail": "task_id is required"})


async def test_an_empty_file(tmp_path):
    async with served(tmp_path) as endpoint:
        assert (await put(endpoint.client, "empty", b"")).status_code == 200
        got = await endpoint.client.get(f"{RESULTS}/f1/files/empty")
        assert (got.status_code, got.content, got.headers["content-length"]) == (200, b"", "0")


FILE = 'Content-Disposition: form-data; name="file"; filename="x"'
MISSING = [{"type": "missing", "loc": ["body", "file"], "msg": "Field required", "input": None}]


@pytest.mark.parametrize(
    ("kind", "content", "status", "detail"),
    [
        ("text/plain", b"x", 422, MISSING),
        (None, b"x", 422, MISSING),
        ("multipart/form-data", b"x", 400, "Missing boundary in multipart."),
        ("multipart/form-data; boundary=XX", body(), 422, MISSING),
        ("multipart/form-data; boundary=XX", body((FILE.replace('"file"', '"upload"'), b"z")), 422, MISSING),
        ("multipart/form-data; boundary=XX", body(("Content-Type: x", b"z")), 422, MISSING),
        ("multipart/form-data; boundary=XX", body((FILE, b"z"), (FILE, b"z")), 400, "one file at a time"),
    ],
)
async def test_bad_forms(tmp_path, kind, content, status, detail):
    async with served(tmp_path) as endpoint:
        headers = {"content-type": kind} if kind else {}
        answer = await endpoint.client.post(f"{RESULTS}/f1/files", content=content, headers=headers)
        assert (answer.status_code, answer.json()) == (status, {"detail": detail})
        assert list(endpoint.results.rglob("*.part")) == []
        assert not (endpoint.results / "f1" / "x").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"not a form",
        body((FILE, b"z"), end=False),
        body((FILE, b"z" * 9_000_000), end=False),
        body((f"X-Long: {'y' * 20_000}\r\n{FILE}", b"z")),
        b"--XX\r\n\xff\xff: y\r\n\r\nz\r\n--XX--\r\n",
        b"--YY\r\n" + FILE.encode() + b"\r\n\r\nz\r\n--YY--\r\n",
    ],
)
async def test_broken_forms_leave_nothing(tmp_path, content):
    async with served(tmp_path) as endpoint:
        await put(endpoint.client, "x", b"before")
        headers = {"content-type": "multipart/form-data; boundary=XX"}
        answer = await endpoint.client.post(f"{RESULTS}/f1/files", content=content, headers=headers)
        assert answer.status_code == 400, answer.text
        assert "error parsing the body" in answer.json()["detail"]
        assert (endpoint.results / "f1" / "x").read_bytes() == b"before"
        assert list(endpoint.results.rglob("*.part")) == []


async def test_other_fields_around_the_file_do_not_matter(tmp_path):
    note = ('Content-Disposition: form-data; name="note"', b"hello")
    async with served(tmp_path) as endpoint:
        for parts in ((note, (FILE, b"one")), ((FILE, b"two"), note)):
            headers = {"content-type": "multipart/form-data; boundary=XX"}
            answer = await endpoint.client.post(f"{RESULTS}/f1/files", content=body(*parts), headers=headers)
            assert answer.status_code == 200
            assert (endpoint.results / "f1" / "x").read_bytes() == parts[0 if parts[0] is not note else 1][1]


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
async def test_a_boundary_may_be_cut_anywhere(tmp_path, chunk):
    data = b"\r\n--X\r\n--XX-\r" * 20
    content = body((FILE, data))

    async def pieces():
        for at in range(0, len(content), chunk):
            yield content[at : at + chunk]

    async with served(tmp_path) as endpoint:
        headers = {"content-type": "multipart/form-data; boundary=XXYY"}
        content = content.replace(b"--XX--", b"--XXYY--").replace(b"--XX\r\nContent", b"--XXYY\r\nContent")
        answer = await endpoint.client.post(f"{RESULTS}/f1/files", content=pieces(), headers=headers)
        assert answer.status_code == 200, answer.text
        assert (endpoint.results / "f1" / "x").read_bytes() == data


@pytest.mark.parametrize("known_length", [True, False])
async def test_the_largest_file(tmp_path, known_length):
    async with served(tmp_path, max_upload_bytes=1000) as endpoint:
        assert (await put(endpoint.client, "fits", b"z" * 1000)).status_code == 200
        content = body((FILE, b"z" * 100_000 if known_length else b"z" * 1001))
        answer = await endpoint.client.post(
            f"{RESULTS}/f1/files", content=content, headers={"content-type": "multipart/form-data; boundary=XX"}
        )
        assert (answer.status_code, "1000 bytes" in answer.json()["detail"]) == (413, True)
        assert not (endpoint.results / "f1" / "x").exists()


async def test_a_client_that_goes_leaves_nothing(tmp_path):
    content = body((FILE, b"z" * 9_000_000), end=False)
    messages: Iterator[dict] = iter(
        [{"type": "http.request", "body": content, "more_body": True}, {"type": "http.disconnect"}]
    )

    async def receive():
        return next(messages)

    async def send(message):
        del message

    async with served(tmp_path) as endpoint:
        scope = {
            "type": "http",
            "method": "POST",
            "path": f"{RESULTS}/f1/files",
            "query_string": b"",
            "headers": [(b"content-type", b"multipart/form-data; boundary=XX")],
        }
        await endpoint.app(scope, receive, send)
        assert [p for p in endpoint.results.rglob("*") if p.is_file()] == []


async def test_an_upload_that_is_cancelled_closes_its_file_when_the_disk_is_done_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(upload, "_BLOCK", 1000)
    monkeypatch.setattr(upload, "_SYNCED", 1000)
    writing, done, errors = threading.Event(), threading.Event(), []
    slow = {"writev": os.writev, "fdatasync": os.fdatasync}

    def slowly(call: str):
        def run(handle, *arguments):
            writing.set()
            done.wait(5)
            try:
                return slow[call](handle, *arguments)
            except OSError as error:  # the file was closed meanwhile
                errors.append(error)
                raise

        return run

    for call in slow:
        monkeypatch.setattr(os, call, slowly(call))
        writing.clear()
        done.clear()
        async with served(tmp_path) as endpoint:
            sending = asyncio.create_task(put(endpoint.client, "x", b"z" * 5000))
            await asyncio.to_thread(writing.wait, 5)
            sending.cancel()
            await asyncio.sleep(0.05)
            done.set()
            await asyncio.gather(sending, return_exceptions=True)
            assert [p for p in endpoint.results.rglob("*") if p.is_file()] == []
        monkeypatch.setattr(os, call, slow[call])
    assert errors == []


async def test_an_upload_replaces_the_artifact_of_that_name(tmp_path):
    async with served(tmp_path) as endpoint:
        artifact = endpoint.results / "f1" / "artifacts" / "a.txt"
        artifact.parent.mkdir(parents=True)
        artifact.write_text("old")
        answer = await put(endpoint.client, "a.txt", b"new")
        assert answer.json()["path"] == str(artifact)
        assert (await endpoint.client.get(f"{RESULTS}/f1/files/a.txt")).content == b"new"


@pytest.mark.parametrize("name", ["manifest.json", "artifacts", "logs", "attempts", ".sha256", "x.part"])
async def test_an_upload_does_not_take_the_place_of_what_the_runner_keeps(tmp_path, name):
    async with served(tmp_path) as endpoint:
        answer = await put(endpoint.client, name, b"forged")
        assert answer.json()["path"] == str(endpoint.results / "f1" / "artifacts" / name)
        assert (await endpoint.client.get(f"{RESULTS}/f1/files/{name}")).content == b"forged"


async def test_links_out_of_the_task_are_not_followed(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    async with served(tmp_path) as endpoint:
        home = endpoint.results / "f1"
        home.mkdir(parents=True)
        (home / "out").symlink_to(tmp_path / "secret.txt")
        (home / "in").symlink_to(home / "real")
        (home / "real").write_text("mine")
        assert (await endpoint.client.get(f"{RESULTS}/f1/files/out")).status_code == 404
        assert (await endpoint.client.get(f"{RESULTS}/f1/files/in")).text == "mine"
        assert (await put(endpoint.client, "out", b"new")).status_code == 200
        assert (tmp_path / "secret.txt").read_text() == "secret"


@pytest.mark.parametrize(
    ("header", "status", "expected"),
    [
        ("bytes=0-3", 206, b"0123"),
        ("bytes=4-", 206, b"456789"),
        ("bytes=-3", 206, b"789"),
        ("bytes=-30", 206, b"0123456789"),
        ("bytes=8-100", 206, b"89"),
        ("bytes=10-", 416, None),
        ("bytes=-0", 416, None),
        ("bytes=5-2", 200, b"0123456789"),
        ("bytes=-", 200, b"0123456789"),
        ("bytes=0-1,3-4", 200, b"0123456789"),
        ("items=0-1", 200, b"0123456789"),
        (f"bytes={'9' * 4000}-", 416, None),
    ],
)
async def test_ranges(tmp_path, header, status, expected):
    async with served(tmp_path) as endpoint:
        await put(endpoint.client, "x", b"0123456789")
        got = await endpoint.client.get(f"{RESULTS}/f1/files/x", headers={"range": header})
        assert got.status_code == status
        if expected is not None:
            assert (got.content, got.headers["content-length"]) == (expected, str(len(expected)))
        if status == 206:
            start = b"0123456789".find(expected)
            assert got.headers["content-range"] == f"bytes {start}-{start + len(expected) - 1}/10"
        if status == 416:
            assert got.headers["content-range"] == "bytes */10"


async def test_conditions(tmp_path):
    async with served(tmp_path) as endpoint:
        await put(endpoint.client, "x", b"0123456789")
        url = f"{RESULTS}/f1/files/x"
        first = await endpoint.client.get(url)
        tag, changed = first.headers["etag"], first.headers["last-modified"]
        for condition, status in ((tag, 206), (changed, 206), ('"other"', 200), ("yesterday", 200)):
            got = await endpoint.client.get(url, headers={"range": "bytes=0-1", "if-range": condition})
            assert got.status_code == status
        for condition, status in ((tag, 304), (f'"a", W/{tag}', 304), ("*", 304), ('"other"', 200)):
            got = await endpoint.client.get(url, headers={"if-none-match": condition})
            assert (got.status_code, got.headers["etag"]) == (status, tag)
        await put(endpoint.client, "x", b"9876543210")
        assert (await endpoint.client.get(url)).headers["etag"] != tag


async def test_the_tag_of_a_file_that_a_stage_left_is_that_of_its_manifest(tmp_path, monkeypatch):
    async with served(tmp_path) as endpoint:
        home = endpoint.results / "f1"
        home.mkdir(parents=True)
        (home / "model.bin").write_bytes(b"weights")
        entries = survey(home, result=(0, ""), required=["model.bin"])
        commit_manifest(home, Manifest(task_id="f1", generated_at="now", entries=entries, spec_sha256="x"))
        monkeypatch.setattr(digests.atomic, "digest", None)  # nothing is hashed for it
        got = await endpoint.client.get(f"{RESULTS}/f1/files/model.bin")
        assert got.headers["etag"] == f'"{hashlib.sha256(b"weights").hexdigest()}"'


async def test_a_large_file_gets_its_tag_later(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_AT_ONCE", 3)
    async with served(tmp_path) as endpoint:
        (endpoint.results / "f1").mkdir(parents=True)
        (endpoint.results / "f1" / "x").write_bytes(b"0123456789")
        first = await endpoint.client.get(f"{RESULTS}/f1/files/x")
        assert (first.content, first.headers["etag"][:3]) == (b"0123456789", 'W/"')
        await asyncio.gather(*digests._running.values())
        second = await endpoint.client.get(f"{RESULTS}/f1/files/x")
        assert second.headers["etag"] == f'"{hashlib.sha256(b"0123456789").hexdigest()}"'


async def test_uploads_at_once_are_one_whole_file(tmp_path):
    async with served(tmp_path) as endpoint:
        contents = [bytes([number]) * 500_000 for number in range(6)]
        await asyncio.gather(*(put(endpoint.client, "x", content) for content in contents))
        got = await endpoint.client.get(f"{RESULTS}/f1/files/x")
        assert got.content in contents
        assert got.headers["etag"] == f'"{hashlib.sha256(got.content).hexdigest()}"'


async def test_an_html_file_is_no_page_of_ours(tmp_path):
    async with served(tmp_path) as endpoint:
        await put(endpoint.client, "x.html", b"<script>")
        got = await endpoint.client.get(f"{RESULTS}/f1/files/x.html")
        assert got.headers["content-disposition"].startswith("attachment")
        assert got.headers["x-content-type-options"] == "nosniff"
        assert got.headers["content-type"] == "text/html; charset=utf-8"


async def test_a_disk_that_takes_a_part_at_a_time(tmp_path, monkeypatch):
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda handle, pieces: real(handle, [b"".join(pieces)[:1000]]))
    content = os.urandom(9_000_000)
    async with served(tmp_path) as endpoint:
        answer = await put(endpoint.client, "x", content)
        assert Path(answer.json()["path"]).read_bytes() == content


@pytest.mark.parametrize("call", ["writev", "fdatasync", "fsync"])
async def test_a_full_disk_is_507_and_leaves_what_was_there(tmp_path, monkeypatch, call):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(upload, "_BLOCK", 100_000)
    monkeypatch.setattr(upload, "_SYNCED", 200_000)
    async with served(tmp_path) as endpoint:
        await put(endpoint.client, "x", b"before")
        monkeypatch.setattr(os, call, full)
        for answer in (
            await put(endpoint.client, "x", b"after" * 1_000_000),
            *([await endpoint.client.post(RESULTS, json={"task_id": "f1", "result": {}})] if call == "fsync" else []),
        ):
            assert (answer.status_code, answer.json()) == (507, {"detail": "no space is left for the results"})
        assert (endpoint.results / "f1" / "x").read_bytes() == b"before"
        assert list(endpoint.results.rglob("*.part")) == []
        assert not (endpoint.results / "f1" / "responses.json").exists()
