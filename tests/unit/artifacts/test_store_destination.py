"""Destinations behind fsspec URLs, and checkpoints that come back from them; `memory://` stands for all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mloc_prefect.artifacts.archive import pack
from mloc_prefect.artifacts.checkpoint import CheckpointRoots, load_checkpoint
from mloc_prefect.artifacts.layout import destination_dir
from mloc_prefect.artifacts.transfer.artifact_store import FsspecArtifactStore
from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts, DeliveryError
from mloc_prefect.artifacts.transfer.store_destination import StoreDestination, store_result
from mloc_prefect.errors import ArtifactError
from mloc_prefect.tasks.checks import check_spec
from mloc_prefect.tasks.keys import table_of, unknown_keys
from mloc_prefect.tasks.registry import task_type

URL = "memory://bucket/models"


@pytest.fixture(autouse=True)
def bucket() -> Any:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    return memory


@pytest.fixture
def places(tmp_path: Path) -> CheckpointRoots:
    task = tmp_path / "results" / "second"
    task.mkdir(parents=True)
    return CheckpointRoots(task, task.parent, tmp_path, tmp_path / "cache", AllowedHosts())


def trained(root: Path, weights: bytes = b"w" * 1000) -> Path:
    """Leave what a finished training does; return its result."""
    (root / "final_model").mkdir(parents=True, exist_ok=True)
    (root / "final_model" / "model.safetensors").write_bytes(weights)
    packed = pack(root / "final_model", root / "final_model.zip")
    content = {"final_model_archive_path": str(packed.path), "final_model_archive_sha256": packed.sha256}
    (root / "result.json").write_text(json.dumps(content))
    return root / "result.json"


def destination(path: str = URL) -> StoreDestination:
    found = StoreDestination.of({"type": "local", "path": path})
    assert found is not None
    return found


def test_archive_and_result_lie_there_and_come_back(tmp_path: Path, places: CheckpointRoots, bucket: Any) -> None:
    result = trained(tmp_path / "first")
    store_result(destination(), "first", result)
    url = json.loads(result.read_text())["final_model_archive_url"]
    assert url == "memory://bucket/models/first/final_model.zip"
    names = [name.rpartition("/")[2] for name in bucket.find("/bucket")]
    assert sorted(names) == ["final_model.zip", "final_model.zip.sha256", "responses.json"]
    assert bucket.cat("/bucket/models/first/responses.json") == result.read_bytes()
    found = load_checkpoint({"path": url}, places)
    assert (found / "model.safetensors").read_bytes() == b"w" * 1000
    assert found.is_relative_to(places.task_dir)
    bucket.store.clear()
    assert load_checkpoint({"path": url}, places) == found, "a later attempt uses what an earlier one fetched"


def test_the_same_archive_is_not_sent_twice_and_another_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    put = FsspecArtifactStore.put

    def counted(self: FsspecArtifactStore, source: Path, key: str) -> str:
        sent.append(key)
        return put(self, source, key)

    monkeypatch.setattr(FsspecArtifactStore, "put", counted)
    for weights in (b"1", b"1", b"2"):
        store_result(destination(), "first", trained(tmp_path / "first", weights))
    assert sent.count("first/final_model.zip") == 2
    assert sent.count("first/responses.json") == 3


@pytest.mark.parametrize("wrong", ["archive", "note", "spec"])
def test_what_is_not_the_same_any_more_is_refused(
    wrong: str, tmp_path: Path, places: CheckpointRoots, bucket: Any
) -> None:
    store_result(destination(), "first", trained(tmp_path / "first"))
    url = f"{URL}/first/final_model.zip"
    if wrong == "archive":
        bucket.pipe_file("/bucket/models/first/final_model.zip", b"PK other")
    if wrong == "note":
        bucket.pipe_file("/bucket/models/first/final_model.zip.sha256", b"0" * 64)
    load = {"path": url, **({"sha256": "1" * 64} if wrong == "spec" else {})}
    with pytest.raises(ArtifactError, match=r"^Failed to download checkpoint from memory://.*: its sha256 is ") as told:
        load_checkpoint(load, places)
    assert "\n" not in told.value.message
    assert list((places.task_dir / "imported_checkpoint").iterdir()) == []


def test_an_archive_that_is_not_there(places: CheckpointRoots) -> None:
    with pytest.raises(ArtifactError, match=r"Failed to download checkpoint .* has no 'none\.zip'") as caught:
        load_checkpoint({"path": f"{URL}/none.zip"}, places)
    assert getattr(caught.value, "retryable", None) is False


def test_a_store_that_fails_is_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> str:
        raise ArtifactError("cannot write: no route to host")

    monkeypatch.setattr(FsspecArtifactStore, "put", broken)
    with pytest.raises(DeliveryError, match="Failed to deliver task first result to memory://bucket/models: cannot"):
        store_result(destination(), "first", trained(tmp_path / "first"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("sftp://inner.example/m", "host 'inner.example'"),
        ("zip://a::s3://bucket", "chained URL"),
        ("nonsense://a/b", "host 'a'"),
        ("smb://elsewhere.example/x", "host 'elsewhere.example'"),
    ],
)
def test_urls_that_may_not_be_written(path: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        destination(path).check(AllowedHosts())


def test_a_kind_of_url_that_nobody_knows_is_told_before_anything_runs() -> None:
    with pytest.raises(ArtifactError, match="nonsense:// is not a known kind of URL"):
        destination("nonsense://a/b").check(AllowedHosts(frozenset({"a"})))
    destination().check(AllowedHosts())


def test_urls_of_this_file_system_are_paths(tmp_path: Path) -> None:
    assert StoreDestination.of({"path": "file:///x"}) is StoreDestination.of({"path": "plain"}) is None
    assert StoreDestination.of({"type": "http", "path": URL}) is None
    inside = destination_dir(tmp_path, "t", {"path": f"file://{tmp_path}/out"}, allow_outside=False)
    assert inside == tmp_path / "out" / "t"
    with pytest.raises(ArtifactError, match="leaves the results root"):
        destination_dir(tmp_path, "t", {"path": "file:///etc"}, allow_outside=False)
    assert destination_dir(tmp_path, "t", {"path": URL}, allow_outside=False) == tmp_path / "t"


def test_an_http_address_is_no_path() -> None:
    spec = {"data": {"prompts": ["x"]}, "output": {"destination": {"path": "https://h/x"}}}
    found = check_spec(task_type("sft").model, spec).problems
    assert [(p.code, p.message) for p in found] == [("invalid-url", "A path cannot be an http address")]


@pytest.mark.parametrize(("sha256", "found"), [("a" * 64, []), ("abc", ["invalid-type"]), ("${first.result.x}", [])])
def test_a_digest_may_be_asked_for(sha256: str, found: list[str]) -> None:
    spec = {"data": {"prompts": ["x"]}, "checkpoint": {"load": {"path": URL, "sha256": sha256}}}
    model = task_type("sft").model
    assert [p.code for p in check_spec(model, spec).problems] == found
    assert unknown_keys(spec, table_of(model)) == []


def test_files_outside_of_the_task_are_not_stored(tmp_path: Path, bucket: Any) -> None:
    result = trained(tmp_path / "first")
    other = tmp_path / "task"
    other.mkdir()
    store_result(destination(), "first", result, other)
    assert not any(name.endswith(".zip") for name in bucket.find("bucket"))
    store_result(destination(), "first", result, tmp_path / "first")
    assert any(name.endswith(".zip") for name in bucket.find("bucket"))
