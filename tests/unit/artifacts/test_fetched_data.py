"""Data behind http: what may pass is tried again, what may not is told at once, and the form comes from the answer."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import threading
import urllib.error
from http.client import IncompleteRead, InvalidURL
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import httpx
import pytest

from mloc_prefect.artifacts.cache import fetch_http
from mloc_prefect.artifacts.transfer import file_download
from mloc_prefect.artifacts.transfer.outgoing import (
    LONGEST_WAIT,
    AllowedHosts,
    TransferError,
    is_passing,
)
from mloc_prefect.execution.failures import failure_of
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.sources import datasets_source
from mloc_prefect.executors.sources.datasets_source import load_table
from mloc_prefect.executors.sources.source_lookup import SourceLookup

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROW = b'{"text": "far"}\n'
Answer = tuple[int, dict[str, str], bytes]


class Scripted(BaseHTTPRequestHandler):
    """Answers each path with its answers in turn; the last one stays."""

    answers: ClassVar[dict[str, list[Answer]]] = {}
    seen: ClassVar[list[tuple[str, dict[str, str]]]] = []

    def do_GET(self) -> None:
        self.seen.append((self.path, dict(self.headers)))
        left = self.answers[self.path.partition("?")[0]]
        status, headers, body = left.pop(0) if len(left) > 1 else left[0]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    Scripted.answers, Scripted.seen = {}, []
    found: list[float] = []
    monkeypatch.setattr(file_download, "_sleep", found.append)
    return found


@pytest.fixture
def sources(tmp_path: Path) -> SourceLookup:
    return SourceLookup.of({"home": str(tmp_path), "base_dir": str(tmp_path), "loopback": True})


def rows(sources: SourceLookup, **data: Any) -> list[dict[str, Any]]:
    return load_table(SpecReader(data, "spec.data"), sources).rows


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_server_that_is_busy_once_is_asked_again(
    base: str, sources: SourceLookup, waits: list[float], status: int
) -> None:
    Scripted.answers = {"/rows.jsonl": [(status, {"Retry-After": "7"}, b""), (200, {}, ROW)]}
    assert rows(sources, url=f"{base}/rows.jsonl") == [{"text": "far"}]
    assert waits == [7.0]


def test_a_server_that_stays_busy_is_no_mistake_of_the_user(
    base: str, sources: SourceLookup, waits: list[float]
) -> None:
    Scripted.answers = {"/rows.jsonl": [(503, {"Retry-After": "86400"}, b"")]}
    with pytest.raises(TransferError, match="answered status 503") as caught:
        rows(sources, url=f"{base}/rows.jsonl")
    assert failure_of(caught.value).retryable
    assert waits == [LONGEST_WAIT] * 4


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_what_is_not_there_costs_one_request(base: str, sources: SourceLookup, waits: list[float], status: int) -> None:
    Scripted.answers = {"/rows.jsonl": [(status, {}, b"")]}
    with pytest.raises(UserError, match=f"answered status {status}"):
        rows(sources, url=f"{base}/rows.jsonl")
    assert waits == []


def test_a_port_that_refuses_may_listen_later(sources: SourceLookup) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(TransferError, match="Connection refused") as caught:
        rows(sources, url=f"http://127.0.0.1:{port}/donn\xe9es.jsonl")
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (ConnectionRefusedError(), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (IncompleteRead(b""), True),
        (urllib.error.URLError(socket.gaierror(socket.EAI_AGAIN, "later")), True),
        (urllib.error.URLError(socket.gaierror(socket.EAI_NONAME, "no such host")), False),
        (urllib.error.URLError(ssl.SSLCertVerificationError("expired")), False),
        (InvalidURL("blank"), False),
        (FileNotFoundError(), False),
        (PermissionError(), False),
        (gzip.BadGzipFile(), False),
        (ValueError(), False),
    ],
)
def test_which_errors_may_pass(error: Exception, passing: bool) -> None:
    assert is_passing(error) is passing


CSV = b"text\nfar\n"


@pytest.mark.parametrize(
    ("path", "headers", "body"),
    [
        ("/rows.jsonl", {"Content-Type": "text/csv"}, ROW),  # the name that the user sees comes first
        ("/rows", {"Content-Type": "text/csv; charset=utf-8"}, CSV),
        ("/rows", {"Content-Type": "application/x-ndjson"}, ROW),
        ("/get", {"Content-Disposition": 'attachment; filename="rows.csv"', "Content-Type": "text/plain"}, CSV),
        ("/get", {"Content-Disposition": "attachment; filename*=UTF-8''r%C3%A9.csv.gz"}, gzip.compress(CSV, mtime=0)),
        ("/rows.jsonl", {"Content-Encoding": "gzip"}, gzip.compress(ROW, mtime=0)),
        ("/rows.jsonl.gz", {"Content-Encoding": "gzip"}, gzip.compress(gzip.compress(ROW, mtime=0), mtime=0)),
        ("/rows.jsonl.gz", {}, ROW),  # unpacked on its way
        ("/rows.jsonl", {}, gzip.compress(ROW, mtime=0)),
    ],
)
def test_the_form_of_what_was_fetched(
    base: str, sources: SourceLookup, path: str, headers: dict[str, str], body: bytes
) -> None:
    Scripted.answers = {path: [(200, headers, body)]}
    assert rows(sources, url=f"{base}{path}?sig=1") == [{"text": "far"}]


def test_the_form_of_the_url_after_a_redirect(base: str, sources: SourceLookup) -> None:
    Scripted.answers = {"/latest": [(302, {"Location": "/v 2/r\xe9.csv"}, b"")], "/v%202/r%E9.csv": [(200, {}, CSV)]}
    assert rows(sources, url=f"{base}/latest") == [{"text": "far"}]


def test_a_coding_that_was_not_asked_for(base: str, sources: SourceLookup) -> None:
    Scripted.answers = {"/rows.jsonl": [(200, {"Content-Encoding": "br"}, b"x")]}
    with pytest.raises(UserError, match="Content-Encoding 'br', which was not asked for"):
        rows(sources, url=f"{base}/rows.jsonl")


def test_urls_as_browsers_show_them(base: str, sources: SourceLookup) -> None:
    Scripted.answers = {"/donn%C3%A9es%20100%25.jsonl": [(200, {}, ROW)]}
    assert rows(sources, url=f"{base}/données 100%.jsonl") == [{"text": "far"}]


def test_user_and_password_are_sent_and_not_shown(base: str, sources: SourceLookup) -> None:
    Scripted.answers = {"/rows.jsonl": [(200, {}, ROW)], "/none.jsonl": [(404, {}, b"")]}
    with_login = base.replace("//", "//me:se%3Acret@")
    assert rows(sources, url=f"{with_login}/rows.jsonl") == [{"text": "far"}]
    assert Scripted.seen[0][1]["Authorization"] == "Basic bWU6c2U6Y3JldA=="
    with pytest.raises(UserError) as caught:
        rows(sources, url=f"{with_login}/none.jsonl")
    assert "cret" not in str(caught.value)


def test_the_login_is_not_sent_to_another_origin(base: str, sources: SourceLookup) -> None:
    other = base.replace("127.0.0.1", "localhost")
    Scripted.answers = {"/a.jsonl": [(302, {"Location": f"{other}/b.jsonl"}, b"")], "/b.jsonl": [(200, {}, ROW)]}
    rows(sources, url=f"{base.replace('//', '//me:secret@')}/a.jsonl")
    assert ["Authorization" in headers for _, headers in Scripted.seen] == [True, False]


def test_hosts_are_compared_as_they_are_called(tmp_path: Path) -> None:
    allowed = AllowedHosts(frozenset({"münchen.example"}))
    allowed.check("http://münchen.example/a")
    allowed.check("http://xn--mnchen-3ya.example/a")
    with pytest.raises(TransferError, match=r"host '127\.0\.0\.1' of .* is not allowed"):
        fetch_http("http://１２７.0.0.1/a.jsonl", tmp_path, AllowedHosts())


def test_one_file_has_no_two_splits(base: str, sources: SourceLookup, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    Scripted.answers = {"/rows.jsonl": [(200, {}, ROW)]}
    for url in ("rows.jsonl", f"{base}/rows.jsonl"):
        with pytest.raises(UserError, match=r"is one file, which has no splits: 'train' and 'test' are the same rows"):
            rows(sources, url=url, split="train+test")
    assert json.dumps(rows(sources, url="rows.jsonl", split="train[1:]+train[:1]")).index("two") < 20
    assert len(rows(sources, url="rows.jsonl", split="test")) == 2, "one name may be any, as in mirrors"


class Answered(OSError):
    """As huggingface_hub raises it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status} of the hub")
        self.response = SimpleNamespace(status_code=status)


def wrapped(cause: Exception) -> OSError:
    error = OSError("as transformers puts it")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (Answered(503), True),
        (wrapped(Answered(429)), True),
        (wrapped(httpx.ConnectError("refused")), True),
        (wrapped(httpx.ReadTimeout("slow")), True),
        (ConnectionResetError(), True),
        (Answered(404), False),
        (wrapped(Answered(401)), False),
        (OSError("no such file"), False),
    ],
)
def test_a_hub_that_fails_for_now_is_no_mistake_of_the_user(
    sources: SourceLookup, monkeypatch: pytest.MonkeyPatch, error: OSError, passing: bool
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(datasets_source, "hub_problem", lambda: None)
    monkeypatch.setattr("datasets.load_dataset", fails)
    with pytest.raises(TransferError if passing else UserError, match="org/name"):
        rows(sources, url="org/name")
