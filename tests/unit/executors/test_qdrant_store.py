"""Where a collection is: which folder a spec may name and who opens it, which server is called, and their errors."""

from __future__ import annotations

import pickle
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts, TransferError
from mloc_prefect.errors import ArtifactError
from mloc_prefect.execution.protocol import Cancelled, UserError
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.rag.qdrant_store import MARK, StoreAddress, open_client
from mloc_prefect.executors.sources.source_lookup import SourceLookup
from mloc_prefect.process.lock_file import LockFile
from mloc_prefect.tasks.rag import FOLDER_SECONDS
from mloc_prefect.trust.input_roots import InputRoots
from tests.support.turning_names import called_server, turn_names

if TYPE_CHECKING:
    from collections.abc import Callable

QdrantClient = pytest.importorskip("qdrant_client").QdrantClient

QUIET = (lambda: None, lambda _text: None)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.file,))


def lookup(root: Path, *, linked: bool = False, confined: bool = True) -> SourceLookup:
    for name in ("work", "data", "results"):
        (root / name).mkdir(exist_ok=True)
    inputs = InputRoots(
        results=root / "results",
        home=root / "home",
        working=root / "work",
        data=(root / "data",),
        linked=linked,
    )
    wire = {"home": str(root / "home"), "base_dir": str(root / "work"), "loopback": True}
    return SourceLookup.of({**wire, **({"inputs": inputs.to_wire()} if confined else {})})


def address(sources: SourceLookup, path: str | Path, **more: str) -> StoreAddress:
    return StoreAddress.of(SpecReader({"path": str(path), "collection": "c", **more}, "spec.qdrant"), sources)


def opened(where: StoreAddress, check: Callable[[], None] = lambda: None, phases: list[str] | None = None) -> list[str]:
    from qdrant_client import models

    told = phases if phases is not None else []
    with open_client(where, check, told.append) as client:
        if not client.collection_exists("c"):
            client.create_collection("c", models.VectorParams(size=2, distance=models.Distance.COSINE))
            client.upsert("c", [models.PointStruct(id=1, vector=[1.0, 0.0], payload={"a": 1})])
        return [c.name for c in client.get_collections().collections]


def with_point(folder: Path, value: bytes) -> None:
    """Replace the stored point of a collection."""
    storage = sqlite3.connect(folder / "collection/c/storage.sqlite")
    with storage:
        storage.execute("UPDATE points SET point = ?", (value,))
    storage.close()


@pytest.mark.parametrize("path", ["s3:/../../../elsewhere", "s3://../../../elsewhere", "https:/../../elsewhere"])
@pytest.mark.parametrize("confined", [True, False])
def test_a_url_is_no_folder_whatever_its_slashes(tmp_path: Path, path: str, confined: bool) -> None:
    sources = lookup(tmp_path, confined=confined)
    with pytest.raises(UserError, match="is no folder of this machine"):
        address(sources, path)
    if confined:
        assert sources.local(path).parent == sources.base


def test_a_submission_opens_only_what_a_task_has_made(tmp_path: Path) -> None:
    sources, folder = lookup(tmp_path), tmp_path / "data/store"
    assert opened(address(sources, folder)) == ["c"]
    assert opened(address(sources, folder)) == ["c"]
    (folder / MARK).unlink()
    with_point(folder, pickle.dumps(Bomb(tmp_path / "went off")))
    with pytest.raises(UserError, match=f"not made by a rag task.* empty file {MARK}"):
        address(sources, folder)
    assert not (tmp_path / "went off").exists()
    assert address(lookup(tmp_path, confined=False), folder).path == folder, "the user himself may"


def test_results_are_no_store_wherever_they_are(tmp_path: Path) -> None:
    sources, outside = lookup(tmp_path, linked=True), tmp_path / "elsewhere/t1"
    outside.mkdir(parents=True)
    (tmp_path / "results/t1").symlink_to(outside)
    for path in (outside / "store", tmp_path / "results/t1/store", tmp_path / "results/t2/store"):
        with pytest.raises(UserError, match=r"outside the folders|not kept among results"):
            address(sources, path)


def test_a_folder_has_one_client_at_a_time_and_the_next_one_can_be_cancelled(tmp_path: Path) -> None:
    where = address(lookup(tmp_path), "store")
    assert where.path is not None
    where.path.mkdir()
    held, phases, checks = LockFile(where.path / MARK), list[str](), iter([None, Cancelled()])
    assert held.acquire()

    def check() -> None:
        if (raised := next(checks)) is not None:
            raise raised

    with pytest.raises(Cancelled):
        opened(where, check, phases)
    assert phases == [f"waiting for another task that uses {where.path}"]
    assert [file.name for file in where.path.iterdir()] == [MARK], "nothing is read or written before the lock is had"
    held.release()
    assert opened(where) == ["c"]


def test_a_folder_is_waited_for_until_a_limit_and_its_holder_is_named(tmp_path: Path) -> None:
    where = replace(address(lookup(tmp_path), "store"), wait=0.4)
    assert where.path is not None
    where.path.mkdir()
    program = (
        "import sys; from pathlib import Path; from mloc_prefect.process.lock_file import LockFile\n"
        "assert LockFile(Path(sys.argv[1])).acquire(); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(where.path / MARK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(TransferError, match=f"store is still in use by process {other.pid} after 0.4 s") as caught:
            opened(where)
        assert caught.value.retryable
        assert "spec.qdrant.waitSec" in str(caught.value.hint)
        other.kill()
    assert opened(where) == ["c"], "the lock ends with its process"
    with (
        closing(QdrantClient(path=str(where.path))),
        pytest.raises(TransferError, match="still in use by another program"),
    ):
        opened(where)


def test_a_wait_is_a_field_of_the_spec(tmp_path: Path) -> None:
    assert address(lookup(tmp_path), "store").wait == FOLDER_SECONDS
    assert address(lookup(tmp_path), "store", waitSec="7").wait == 7


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://user:s3cret@q.example", "spec.qdrant.url has a login, which Qdrant does not read"),
        ("https://s3cret@q.example:6333/x", "spec.qdrant.url has a login"),
        ("https://q.example?api_key=s3cret", "spec.qdrant.url has a query, which Qdrant does not read"),
        ("https://q.example/#s3cret", "spec.qdrant.url has a query"),
        ("https://[s3cret", "spec.qdrant.url is not a URL"),
    ],
)
def test_a_url_with_a_secret_is_refused_and_not_shown(tmp_path: Path, url: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        StoreAddress.of(SpecReader({"url": url, "collection": "c"}, "spec.qdrant"), lookup(tmp_path))
    assert str(caught.value).startswith(words)
    assert "s3cret" not in str(caught.value)


def test_a_folder_whose_first_task_was_killed_is_used(tmp_path: Path) -> None:
    where = address(lookup(tmp_path), "store")
    assert where.path is not None
    where.path.mkdir()
    for name in (MARK, "meta.json"):
        (where.path / name).touch()
    assert opened(address(lookup(tmp_path), "store")) == ["c"]


@pytest.mark.parametrize("harm", ["no database", "no point", "cut point", "no meta", "half meta"])
def test_a_torn_folder_is_one_line(tmp_path: Path, harm: str) -> None:
    where = address(lookup(tmp_path), "store")
    assert where.path is not None
    opened(where)
    if harm == "no database":
        (where.path / "collection/c/storage.sqlite").write_bytes(b"nothing" * 999)
    elif harm == "no point":
        with_point(where.path, b"x")
    elif harm == "cut point":
        with_point(where.path, pickle.dumps({"a": 1})[:-3])
    else:
        (where.path / "meta.json").write_text("{}" if harm == "no meta" else '{"collections": {"c')
    with pytest.raises(UserError, match=r"spec\.qdrant\.path: .*store cannot be opened: .") as caught:
        opened(where)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        opened(where)


@pytest.mark.parametrize("name", ["a/b", "..", "a:b", "x" * 300])
def test_a_name_that_no_collection_can_have_is_one_line(tmp_path: Path, name: str) -> None:
    from qdrant_client import models

    sources = lookup(tmp_path)
    for place in ({"path": "store"}, {"path": ":memory:"}):
        where = StoreAddress.of(SpecReader({**place, "collection": name}, "spec.qdrant"), sources)
        with pytest.raises(UserError, match="Collection name") as caught, open_client(where, *QUIET) as client:
            client.create_collection(name, models.VectorParams(size=2, distance=models.Distance.COSINE))
        assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    where = address(lookup(tmp_path), "store")
    with pytest.raises(ArtifactError, match=r"collections in .*store cannot be used: database is full"):  # noqa: SIM117
        with open_client(where, *QUIET):
            raise sqlite3.OperationalError("database is full")


def server(port: int, root: Path, host: str = "127.0.0.1", **more: str) -> StoreAddress:
    sources = replace(lookup(root), allowed=AllowedHosts(frozenset({"h.example"}), loopback=True))
    block = {"url": f"http://{host}:{port}", "collection": "c", **more}
    return StoreAddress.of(SpecReader(block, "spec.qdrant"), sources)


def asked(where: StoreAddress) -> Any:
    with open_client(where, *QUIET) as client:
        return client.collection_exists("c")


@pytest.mark.parametrize(("wait", "seconds"), [("7", 7), ("soon", 0), (None, 0)])
def test_a_server_that_is_busy_is_asked_again(tmp_path: Path, wait: str | None, seconds: int) -> None:
    with called_server(body=b'{"status": {"error": "too many requests"}}') as served:
        served.status, served.headers = 429, {"Retry-After": wait} if wait else {}
        with pytest.raises(TransferError, match=r"Qdrant at http://127\.0\.0\.1:\d+ answered 429") as caught:
            asked(server(served.port, tmp_path))
    assert caught.value.retryable
    assert caught.value.asked_to_wait == seconds


def test_what_is_no_qdrant_server_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    with called_server(body=b"<html>secret</html>") as served, pytest.raises(UserError, match="is no Qdrant server"):
        asked(server(served.port, tmp_path))


def test_the_address_that_was_judged_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    answer = b'{"result": {"exists": true}, "status": "ok", "time": 0}'
    with called_server(body=answer) as judged, called_server("127.0.0.2", judged.port) as other:
        turn_names(monkeypatch, {"h.example": ["127.0.0.1", "127.0.0.2"]})
        assert asked(server(judged.port, tmp_path, "h.example"))
        assert (len(judged.calls), other.calls) == (1, [])
        where = replace(server(judged.port, tmp_path, "h.example"), allowed=AllowedHosts(frozenset({"*.example"})))
        with pytest.raises(UserError, match="stands for an address that it must not have"):
            asked(where)
        assert other.calls == []


def test_a_key_that_cannot_be_sent_is_not_shown(tmp_path: Path) -> None:
    for key in ("s3cret\nkey", "s3crét", "s3cret\x00key", "s3cret\tkey"):
        with pytest.raises(UserError, match=r"spec\.qdrant\.api_key cannot be sent: it has a line break") as caught:
            server(1234, tmp_path, api_key=key)
        assert "s3cr" not in str(caught.value)
    assert server(1234, tmp_path, api_key=" s3cret\n").api_key == "s3cret"
