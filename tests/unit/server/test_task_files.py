"""Files of a task over HTTP: names, links, ranges, tags. [protocol 1.5]"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.artifacts.manifest import Manifest, commit_manifest, survey
from mloc_prefect.server.files import digests
from tests.support.endpoint import served

if TYPE_CHECKING:
    pass
from tests.support.task_files import RESULTS, body, put


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
