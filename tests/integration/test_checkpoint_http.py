"""Archives over real sockets: up to our endpoint and down; broken servers, wrong tokens, redirects, full disks."""

from __future__ import annotations

import hashlib
import json
import threading
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn

from mloc_prefect.artifacts.archive import pack
from mloc_prefect.artifacts.checkpoint import CheckpointRoots, load_checkpoint
from mloc_prefect.artifacts.transfer import artifact_upload as uploading
from mloc_prefect.artifacts.transfer import file_download as downloading
from mloc_prefect.artifacts.transfer.artifact_upload import upload, upload_files
from mloc_prefect.artifacts.transfer.delivery import HttpDestination
from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts
from mloc_prefect.errors import ArtifactError
from mloc_prefect.process.backoff import Backoff
from mloc_prefect.server.application import create_app
from mloc_prefect.settings import get_settings
from mloc_prefect.store.backends import memory_stores
from tests.support.disk import largest_file
from tests.support.patience import FACT_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

LOOPBACK = AllowedHosts(loopback=True)
TOKEN = {"Authorization": "Bearer secret"}
WEIGHTS = bytes(range(256)) * 20_000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("endpoint")


@pytest.fixture(scope="module")
def endpoint(root: Path) -> Iterator[str]:
    settings = get_settings(home=root, token="secret")
    config = uvicorn.Config(create_app(memory_stores(), settings), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def places(tmp_path: Path) -> CheckpointRoots:
    task = tmp_path / "elsewhere" / "second"
    task.mkdir(parents=True)
    return CheckpointRoots(task, task.parent, tmp_path, tmp_path / "cache", LOOPBACK)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "_sleep", lambda _seconds: None)


def model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


async def sent(root: Path, endpoint: str, task: str) -> dict[str, Any]:
    """Pack and upload a model as a finished training does; return its result."""
    packed = pack(model(root / task / "final_model"), root / task / "final_model.zip")
    content = {"final_model_archive_path": str(packed.path), "final_model_archive_sha256": packed.sha256}
    path = root / task / "result.json"
    path.write_text(json.dumps(content))
    destination = HttpDestination(f"{endpoint}/api/v1/results", headers={**TOKEN, "Content-Type": "application/json"})
    assert await upload_files(path, destination, task_id=task, allowed=LOOPBACK) == []
    return json.loads(path.read_text())


async def test_up_and_down(endpoint: str, tmp_path: Path, places: CheckpointRoots) -> None:
    result = await sent(tmp_path, endpoint, "first")
    url = result["final_model_archive_url"]
    assert url == f"{endpoint}/api/v1/results/first/files/final_model.zip"
    told: list[tuple[str, float | None]] = []
    load = {"type": "http", "url": url, "headers": TOKEN}
    found = load_checkpoint(load, places, lambda text, fraction: told.append((text, fraction)))
    assert found == places.task_dir / "imported_checkpoint" / "extracted"
    assert (found / "model.safetensors").read_bytes() == WEIGHTS
    assert [p.name for p in found.parent.iterdir() if not p.name.startswith(".")] == ["extracted"]
    assert ("fetching checkpoint", 1.0) in told
    again = load_checkpoint({"type": "http", "task_id": "first", "base_url": endpoint, "headers": TOKEN}, places)
    assert again == found
    told.clear()
    load_checkpoint({**load, "task_id": "first"}, places, lambda text, fraction: told.append((text, fraction)))
    assert told == [], "a later attempt uses what an earlier one fetched"


async def test_the_same_file_is_not_sent_twice(endpoint: str, tmp_path: Path) -> None:
    result = await sent(tmp_path, endpoint, "twice")
    path, sha = Path(result["final_model_archive_path"]), result["final_model_archive_sha256"]
    stamp = (tmp_path / "twice" / "final_model.zip").stat()
    destination = HttpDestination(f"{endpoint}/api/v1/results", headers=TOKEN)
    path.unlink()  # were it read, this would fail
    assert await upload(path, destination, "twice", LOOPBACK, sha256=sha) == result["final_model_archive_url"]
    assert stamp.st_size > len(WEIGHTS)


def patch(endpoint: str, task: str, body: bytes, sha: str, *, offset: int, length: int) -> httpx.Response:
    headers = {**TOKEN, "Upload-Offset": str(offset), "Upload-Length": str(length), "Upload-Digest": sha}
    return httpx.patch(
        f"{endpoint}/api/v1/results/{task}/files/m.zip", headers=headers, content=body, timeout=FACT_SECONDS
    )


def parts(root: Path, task: str) -> list[Path]:
    return list((root / "results" / task).glob(".*.part"))


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A file that is large enough to go on where it broke."""
    monkeypatch.setattr(uploading, "_LARGE", 1 << 20)
    (tmp_path / "m.zip").write_bytes(WEIGHTS)
    return tmp_path / "m.zip", hashlib.sha256(WEIGHTS).hexdigest()


async def test_a_broken_upload_goes_on_where_it_broke(
    endpoint: str, root: Path, large: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sha = large
    starts: list[int] = []
    pieces = uploading._chunks

    async def broken(file: Path, start: int = 0) -> AsyncIterator[bytes]:
        starts.append(start)
        async for chunk in pieces(file, start):
            yield chunk
            if len(starts) < 3:
                raise OSError("the cable was pulled")

    monkeypatch.setattr(uploading, "_chunks", broken)
    monkeypatch.setattr(uploading, "_WAITS", Backoff(first=0.2))
    destination = HttpDestination(f"{endpoint}/api/v1/results", headers=TOKEN)
    url = await upload(path, destination, "cut", LOOPBACK, sha256=sha)
    assert starts[0] == 0
    assert starts == sorted(set(starts)), "each try begins where the one before ended"
    assert len(starts) >= 3
    assert httpx.get(url, headers=TOKEN, timeout=FACT_SECONDS).content == WEIGHTS
    assert parts(root, "cut") == []
    assert httpx.head(url, headers=TOKEN, timeout=FACT_SECONDS).headers["ETag"] == f'"{sha}"'


def test_pieces_that_do_not_fit_are_refused(endpoint: str, root: Path, large: tuple[Path, str]) -> None:
    _, sha = large
    half, whole = len(WEIGHTS) // 2, len(WEIGHTS)

    def send(body: bytes, offset: int, digest: str = sha, length: int = whole) -> httpx.Response:
        return patch(endpoint, "odd", body, digest, offset=offset, length=length)

    assert send(b"", 0).json() == {"ok": True, "offset": 0}
    assert parts(root, "odd") == [], "asking leaves nothing"
    assert send(WEIGHTS[:half], 0).json()["offset"] == half
    late = send(WEIGHTS[half:], half + 1)
    assert (late.status_code, late.headers["Upload-Offset"]) == (409, str(half))
    assert send(WEIGHTS, half).status_code == 400, "longer than it says"
    for bad in (("x", whole), (sha.upper(), whole), (sha, half - 1)):
        assert send(b"", half, digest=bad[0], length=bad[1]).status_code == 400
    assert send(bytes(whole - half), half).status_code == 422, "other bytes"
    assert parts(root, "odd") == []
    assert (
        httpx.get(f"{endpoint}/api/v1/results/odd/files/m.zip", headers=TOKEN, timeout=FACT_SECONDS).status_code == 404
    )
    assert send(WEIGHTS[:half], 0).json()["offset"] == half
    assert send(b"other", 0, digest="a" * 64, length=9).json()["offset"] == 5
    assert len(parts(root, "odd")) == 1, "half of another file of that name goes away"
    assert httpx.patch(f"{endpoint}/api/v1/results/odd/files/m.zip", timeout=FACT_SECONDS).status_code == 401


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ({"headers": {}}, "the server answered status 401"),
        ({"headers": {"Authorization": "Bearer wrong"}}, "the server answered status 40[13]"),
        ({"headers": TOKEN, "sha256": "0" * 64}, "its sha256 is [0-9a-f]{64}, wanted 0000"),
        ({"headers": TOKEN, "filename": "none.zip", "url": ""}, "the server answered status 404"),
        ({"headers": TOKEN, "archive_format": "tar", "filename": "model"}, "is not a tar archive"),
    ],
)
async def test_refused_in_one_line(
    load: dict[str, Any], message: str, endpoint: str, tmp_path: Path, places: CheckpointRoots
) -> None:
    await sent(tmp_path, endpoint, "first")
    url = f"{endpoint}/api/v1/results/first/files/final_model.zip"
    with pytest.raises(ArtifactError, match=message) as caught:
        load_checkpoint({"type": "http", "url": url, "base_url": endpoint, "task_id": "first", **load}, places)
    assert caught.value.message.startswith("Failed to ")
    assert "\n" not in caught.value.message
    assert "secret" not in str(caught.value)
    assert not (places.task_dir / "imported_checkpoint" / "extracted").exists()


class Broken(BaseHTTPRequestHandler):
    """A server that breaks off; `/whole` does not."""

    data = WEIGHTS
    cuts: list[int] = []  # noqa: RUF012 - reset by each test
    seen: list[tuple[str, str | None, str | None]] = []  # noqa: RUF012

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.seen.append((self.path, wanted, self.headers.get("Authorization")))
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.path != "/no-ranges" else 0
        self.send_response(206 if start else 200)
        tag = "other" if start and self.path == "/other-file" else hashlib.sha256(self.data).hexdigest()
        self.send_header("ETag", "odd" if self.path == "/other-part" else f'"{tag}"')
        if start and self.path == "/other-part":
            start //= 2
            self.send_header("Content-Range", f"bytes {start}-{len(self.data) - 1}/{len(self.data)}")
        self.send_header("Content-Length", str(len(self.data) - start))
        self.end_headers()
        cut = self.cuts.pop(0) if self.cuts else len(self.data)
        self.wfile.write(self.data[start:cut])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def broken() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Broken.cuts, Broken.seen = [], []


def fetch(url: str, target: Path, **source: Any) -> int:
    return downloading.download(downloading.DownloadSource(url, **source), target, LOOPBACK).size


def test_a_broken_download_goes_on_where_it_broke(broken: str, tmp_path: Path) -> None:
    Broken.cuts = [1000, 3_000_000]
    assert fetch(f"{broken}/x", tmp_path / "x") == len(WEIGHTS)
    assert (tmp_path / "x").read_bytes() == WEIGHTS
    assert [wanted for _, wanted, _ in Broken.seen] == [None, "bytes=1000-", "bytes=3000000-"]


def test_a_server_without_ranges_starts_anew(broken: str, tmp_path: Path) -> None:
    Broken.cuts = [1000]
    assert fetch(f"{broken}/no-ranges", tmp_path / "x") == len(WEIGHTS)
    assert (tmp_path / "x").read_bytes() == WEIGHTS


@pytest.mark.parametrize("path", ["other-part", "other-file"])
def test_a_part_that_does_not_fit_is_not_taken(path: str, broken: str, tmp_path: Path) -> None:
    Broken.cuts = [1000]
    assert fetch(f"{broken}/{path}", tmp_path / "x") == len(WEIGHTS)
    assert (tmp_path / "x").read_bytes() == WEIGHTS
    assert [wanted for _, wanted, _ in Broken.seen] == [None, "bytes=1000-", None]


def test_a_download_that_never_ends_is_given_up(broken: str, tmp_path: Path) -> None:
    Broken.cuts = [1000] * 99
    with pytest.raises(ArtifactError, match=f"received only 1000 of {len(WEIGHTS)} bytes") as caught:
        fetch(f"{broken}/no-ranges", tmp_path / "x")
    assert caught.value.retryable
    assert not (tmp_path / "x").exists()


def test_headers_stay_with_their_host_and_redirects_with_allowed_ones(broken: str, tmp_path: Path) -> None:
    other = broken.replace("127.0.0.1", "localhost")
    fetch(f"{broken}/to/{other}/y", tmp_path / "y", headers=TOKEN)
    assert [(path, token) for path, _, token in Broken.seen] == [(f"/to/{other}/y", "Bearer secret"), ("/y", None)]
    for away in ("http://inner.example/x", "file:///etc/passwd"):
        with pytest.raises(ArtifactError, match=r"is not allowed|is not an http or https URL|status 302"):
            fetch(f"{broken}/to/{away}", tmp_path / "z", headers=TOKEN)
        assert not (tmp_path / "z").exists()


def test_a_disk_that_takes_no_more(broken: str, tmp_path: Path, places: CheckpointRoots) -> None:
    pack(model(tmp_path / "m"), tmp_path / "m.zip")
    before = sorted(p.name for p in tmp_path.iterdir())
    with largest_file(1 << 20):
        with pytest.raises(ArtifactError, match=r"cannot write .*: File too large"):
            fetch(f"{broken}/x", tmp_path / "x")
        with pytest.raises(ArtifactError, match=r"cannot write .*: File too large"):
            pack(tmp_path / "m", tmp_path / "n.zip")
        with pytest.raises(
            ArtifactError, match=r"Failed to unpack checkpoint archive: cannot unpack .*: File too large"
        ):
            load_checkpoint({"path": "m.zip"}, places)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert list((places.task_dir / "imported_checkpoint").iterdir()) == []


async def test_large_files_need_no_memory(endpoint: str, tmp_path: Path, places: CheckpointRoots) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(256 << 20)
    tracemalloc.start()
    try:
        packed = pack(folder, tmp_path / "large.zip")
        destination = HttpDestination(f"{endpoint}/api/v1/results", headers=TOKEN)
        url = await upload(packed.path, destination, "large", LOOPBACK, sha256=packed.sha256)
        found = load_checkpoint({"type": "http", "url": url, "headers": TOKEN}, places)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (found / "model.safetensors").stat().st_size == 256 << 20
    assert peak < 64 << 20, f"{peak >> 20} MiB, the endpoint's included"


def test_the_endpoint_is_up(endpoint: str) -> None:
    assert httpx.get(f"{endpoint}/healthz", headers=TOKEN, timeout=FACT_SECONDS).status_code == 200
