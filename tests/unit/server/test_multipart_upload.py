"""Files that go up in a form: bad forms, broken connections, full disks. [protocol 1.5]"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.server.files import multipart_upload
from tests.support.endpoint import served

if TYPE_CHECKING:
    from collections.abc import Iterator

from tests.support.task_files import RESULTS, body, put

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
    monkeypatch.setattr(multipart_upload, "_BLOCK", 1000)
    monkeypatch.setattr(multipart_upload, "_SYNCED", 1000)
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

    monkeypatch.setattr(multipart_upload, "_BLOCK", 100_000)
    monkeypatch.setattr(multipart_upload, "_SYNCED", 200_000)
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


async def test_a_results_root_that_cannot_be_written_is_507_and_its_reason(tmp_path):
    root = tmp_path / "results"
    root.write_text("a file where the folder should be, as root may write anywhere")
    sha = hashlib.sha256(b"x").hexdigest()
    headers = {"Upload-Offset": "0", "Upload-Length": "1", "Upload-Digest": sha}
    async with served(tmp_path, results_dir=root) as endpoint:
        for answer in (
            await put(endpoint.client, "x", b"x"),
            await endpoint.client.patch(f"{RESULTS}/f1/files/x", content=b"x", headers=headers),
            await endpoint.client.post(RESULTS, json={"task_id": "f1", "result": {}}),
        ):
            assert answer.status_code == 507
            assert answer.json()["detail"].startswith("the results root cannot be written: ")
            assert str(root) not in answer.json()["detail"]


async def test_a_boundary_that_the_parser_refuses_is_400(tmp_path):
    async with served(tmp_path) as endpoint:
        kind = {"content-type": f"multipart/form-data; boundary={'B' * 5000}"}
        answer = await endpoint.client.post(f"{RESULTS}/f1/files", content=b"x", headers=kind)
        assert answer.status_code == 400
        assert answer.json()["detail"].startswith("There was an error parsing the body: ")
