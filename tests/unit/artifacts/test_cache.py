"""Copies of remote things: nothing beside their place, nothing torn, and no passwords in messages."""

from __future__ import annotations

import gzip
import os
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import fsspec
import pytest

from mloc_prefect.artifacts.cache import fetch_folder, fetch_http
from mloc_prefect.artifacts.data_files import split_files
from mloc_prefect.artifacts.transfer import file_download
from mloc_prefect.artifacts.transfer.artifact_store import FsspecArtifactStore
from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts, TransferError, shown_text
from mloc_prefect.errors import ArtifactError
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.sources.data_tables import read_split
from mloc_prefect.executors.sources.splits import parse_split

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

URL = "memory://cache-test/m"


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between tries, which take no time here."""
    found: list[float] = []
    monkeypatch.setattr(file_download, "_sleep", found.append)
    return found


@pytest.fixture(autouse=True)
def bucket() -> Any:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pipe({"/cache-test/m/a": b"1", "/cache-test/m/b": b"2"})
    return memory


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


@pytest.mark.parametrize("name", ["../evil", "x/../../evil", "../../evil", ".."])
def test_names_that_lead_out_of_the_copy(name: str, bucket: Any, tmp_path: Path) -> None:
    bucket.pipe_file(f"/cache-test/m/{name}", b"x")
    with pytest.raises(ArtifactError, match="has no place below its folder"):
        fetch_folder(URL, tmp_path / "deep" / "cache")
    assert [p for p in names(tmp_path) if "evil" in p] == []


def test_a_fetch_that_is_given_up_beside_another_takes_nothing_from_it(tmp_path: Path) -> None:
    """Tasks of one warm executor are threads of one process."""

    def stop(_fraction: float) -> None:
        raise KeyboardInterrupt

    def beside(_fraction: float) -> None:
        with suppress(KeyboardInterrupt):
            fetch_folder(URL, tmp_path, stop)

    assert names(fetch_folder(URL, tmp_path, beside)) == ["a", "b"]
    assert len(list(tmp_path.iterdir())) == 1


def test_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    target = fetch_folder(URL, tmp_path)
    (tmp_path / ".other.1").write_text("of another URL")
    days = time.time() - 2 * 86400
    for name, old in ((f".{target.name}.123", True), (f".{target.name}.456", False)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("half")
        for path in (tmp_path / name / "a", tmp_path / name) if old else ():
            os.utime(path, (days, days))
    os.utime(tmp_path / ".other.1", (days, days))
    target.rename(tmp_path / "moved")
    fetch_folder(URL, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == sorted(
        [f".{target.name}.456", ".other.1"]
    )


@pytest.mark.parametrize("url", [f"{URL}/a", "file://{base}/a"])
def test_a_file_is_no_folder(url: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(ArtifactError, match="is a file, not a folder"):
        fetch_folder(url.format(base=tmp_path), tmp_path / "cache")
    with pytest.raises(ArtifactError, match="does not exist or is empty"):
        fetch_folder(f"file://{tmp_path}/none", tmp_path / "cache")


class Torn(BaseHTTPRequestHandler):
    """A server that ends before its file does."""

    def do_GET(self) -> None:
        if self.path == "/malformed":
            self.send_response(302)
            self.send_header("Location", "http://[::1")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x" * (1000 if self.path == "/whole" else 400))

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def torn() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Torn) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_half_a_file_is_not_taken_for_a_whole_one(torn: str, tmp_path: Path) -> None:
    allowed = AllowedHosts(loopback=True)
    assert fetch_http(f"{torn}/whole", tmp_path, allowed).stat().st_size == 1000
    with pytest.raises(TransferError, match=r"/half cannot be fetched: received only 400 of 1000 bytes") as caught:
        fetch_http(f"{torn}/half?sig=secret", tmp_path, allowed)
    assert caught.value.retryable
    assert len(list(tmp_path.iterdir())) == 1


def test_a_redirect_to_a_malformed_url_is_one_line(torn: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"/malformed leads to a malformed URL"):
        fetch_http(f"{torn}/malformed", tmp_path, AllowedHosts(loopback=True))


# Passwords and signatures in URLs, as mirrors of operators have them.


def test_messages_show_no_passwords(bucket: Any, tmp_path: Path) -> None:
    url = "nosuch://user:secret@inner.example/m.jsonl"
    for action in (
        lambda: fetch_folder(url, tmp_path),
        lambda: split_files(url, "config", "train"),
        lambda: FsspecArtifactStore(url),
    ):
        with pytest.raises(ArtifactError, match=r"inner\.example") as caught:
            action()
        assert "secret" not in str(caught.value)
    (split,) = parse_split("train")
    bucket.pipe_file("/user:secret@inner.example/bad.jsonl", b"{,")
    with pytest.raises(UserError, match=r"^memory://inner\.example/bad\.jsonl:1:2: not valid JSON"):
        read_split(["memory://user:secret@inner.example/bad.jsonl"], split)
    bucket.pipe_file("/cache-test/m/cut.jsonl.gz", gzip.compress(b"{}" * 99)[:14] + b"\xff" * 20)
    with pytest.raises(UserError, match=r"cut\.jsonl\.gz cannot be read"):
        read_split([f"{URL}/cut.jsonl.gz"], split)
    with pytest.raises(UserError, match=r"^nosuch://inner\.example/m is not a data file"):
        read_split(["nosuch://user:secret@inner.example/m"], split)
    assert "secret" not in repr(FsspecArtifactStore("memory://user:secret@bucket"))


def test_errors_of_libraries_show_none_either(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(_: Any, path: str, *__: Any, **___: Any) -> None:
        raise OSError(f"PUT https://user:secret@inner.example{path}?sig=secret: 403")

    for name in ("find", "cat_file", "isfile"):
        monkeypatch.setattr(fsspec.get_filesystem_class("memory"), name, fails)
    for action in (
        lambda: fetch_folder(URL, tmp_path),
        lambda: split_files(URL, None, "train"),
        lambda: FsspecArtifactStore(URL).read("a"),
    ):
        with pytest.raises(ArtifactError, match=r"PUT https://inner\.example/cache-test/m") as caught:
            action()
        assert "secret" not in str(caught.value)


def test_paths_and_words_stay_as_they_are() -> None:
    text = "/data/a?b.jsonl has no split 'x::y': see http://[::1]:80/a"
    assert shown_text(text) == text
