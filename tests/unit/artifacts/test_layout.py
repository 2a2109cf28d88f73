"""Atomic files, layout of task directories, manifests and stores."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mloc_prefect.artifacts import atomic
from mloc_prefect.artifacts.layout import (
    attempt_dirs,
    destination_dir,
    new_attempt_dir,
    open_task_dir,
    safe_task_id,
    task_dir,
)
from mloc_prefect.artifacts.manifest import Manifest, commit_manifest, read_manifest, supersede, survey
from mloc_prefect.artifacts.transfer.artifact_store import FsspecArtifactStore
from mloc_prefect.errors import ArtifactError, MissingExtraError


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x.json"
    atomic.write_json(path, {"old": "ü"})
    with pytest.raises(RuntimeError, match="stop"), atomic.stream(path) as file:
        file.write(b"half")
        raise RuntimeError("stop")
    assert json.loads(path.read_text()) == {"old": "ü"}
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_write_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"cannot write .*file/x: Not a directory|File exists"):
        atomic.write_bytes(tmp_path / "file" / "x", b"")


def test_copy_returns_size_and_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    expected = (3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    assert atomic.copy(tmp_path / "a", tmp_path / "b") == expected == atomic.digest(tmp_path / "b")


def test_of_many_creators_exactly_one_wins_with_its_whole_content(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    contents = [f"{i}".encode() * 5000 for i in range(16)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda data: atomic.create_exclusive(path, data), contents))
    assert won.count(True) == 1
    assert path.read_bytes() == contents[won.index(True)]
    assert [p.name for p in tmp_path.iterdir()] == ["m.json"]


def test_exclusive_creation_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert atomic.create_exclusive(tmp_path / "m", b"1")
    assert not atomic.create_exclusive(tmp_path / "m", b"2")
    assert (tmp_path / "m").read_bytes() == b"1"


def test_uuid_text_stays_and_other_ids_change_without_collisions() -> None:
    text = str(uuid4())
    assert safe_task_id(text) == text
    assert safe_task_id("../../etc/x y.z").startswith("______etc_x_y_z~")
    assert len({safe_task_id(i) for i in ("a/b", "a.b", "a_b", "a b", safe_task_id("a/b"))}) == 5
    with pytest.raises(ArtifactError, match="task_id is required"):
        safe_task_id("  ")


@given(st.text(min_size=1), st.text(min_size=1))
def test_safe_ids_are_single_components_and_injective(a: str, b: str) -> None:
    if not a.strip() or not b.strip():
        return
    name = safe_task_id(a)
    assert "/" not in name and name not in {".", ".."} and len(name.encode("utf-8", "surrogatepass")) < 250
    assert (safe_task_id(b) == name) == (a == b)


@pytest.mark.parametrize(
    ("destination", "expected"),
    [
        (None, "t1"),
        ({}, "t1"),
        ({"type": "LOCAL", "path": "out/run"}, "out/run/t1"),
        ({"path": "out/t1/"}, "out/t1"),
        ({"path": "./a/../b"}, "b/t1"),
        ({"type": "http", "path": "out", "url": "http://x"}, "t1"),
        ({"type": "http", "path": "../.."}, "t1"),
        ({"type": "ftp", "path": "out"}, "out/t1"),
        ({"path": "  "}, "t1"),
        ({"path": None}, "t1"),
    ],
)
def test_destination_path_rules(tmp_path: Path, destination: dict[str, object] | None, expected: str) -> None:
    assert destination_dir(tmp_path, "t1", destination, allow_outside=False) == tmp_path / expected


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "a/../../b", "~/x"])
def test_destinations_outside_the_results_root_are_refused_unless_allowed(tmp_path: Path, path: str) -> None:
    with pytest.raises(ArtifactError, match="leaves the results root") as caught:
        destination_dir(tmp_path / "r", "t1", {"path": path}, allow_outside=False)
    assert "MLOC_ALLOW_OUTSIDE_RESULTS" in (caught.value.hint or "")
    assert destination_dir(tmp_path / "r", "t1", {"path": path}, allow_outside=True).name == "t1"


def test_a_link_inside_the_root_does_not_lead_out_of_it(tmp_path: Path) -> None:
    root = tmp_path / "r"
    root.mkdir()
    (root / "way").symlink_to(tmp_path)
    with pytest.raises(ArtifactError, match="leaves"):
        destination_dir(root, "t1", {"path": "way/x"}, allow_outside=False)


def test_a_task_with_a_destination_is_found_by_its_id(tmp_path: Path) -> None:
    target = tmp_path / "out" / "t1"
    directory = open_task_dir(tmp_path, "t1", target)
    (directory / "f").write_text("x")
    assert directory == target
    assert (task_dir(tmp_path, "t1") / "f").read_text() == "x"
    assert open_task_dir(tmp_path, "t1", target) == target


def test_files_of_an_earlier_run_stay_where_they_are(tmp_path: Path) -> None:
    usual = open_task_dir(tmp_path, "t1", task_dir(tmp_path, "t1"))
    (usual / "f").write_text("x")
    assert open_task_dir(tmp_path, "t1", tmp_path / "out" / "t1") == usual
    assert (tmp_path / "out" / "t1" / "f").read_text() == "x"


def test_attempts_never_share_a_directory_and_come_newest_first(tmp_path: Path) -> None:
    names = [new_attempt_dir(tmp_path, run, attempt).name for run, attempt in ((1, 1), (1, 1), (1, 10), (2, 1))]
    assert names == ["1-1", "1-2", "1-10", "2-1"]
    assert [p.name for p in attempt_dirs(tmp_path)] == ["2-1", "1-10", "1-2", "1-1"]


def test_manifest_has_the_later_generations_shape_and_commits_once(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "stage.log").write_text("hello")
    (tmp_path / "attempts").mkdir()
    (tmp_path / "model.bin").write_bytes(b"abc")
    entries = survey(tmp_path, result=(7, "f" * 64), required=["model.bin", "nothing.txt", "../secret"])
    manifest = Manifest(task_id="t", generated_at="now", entries=entries, spec_sha256="s", engine="echo", attempt=2)
    assert commit_manifest(tmp_path, manifest)
    assert not commit_manifest(tmp_path, manifest)
    data = json.loads((tmp_path / "manifest.json").read_text())
    rows = {e["path"]: e for e in data["entries"]}
    assert list(data)[:3] == ["task_id", "generated_at", "entries"]
    assert rows["responses.json"]["size"] == 7
    assert rows["responses.json"]["required"] is True
    assert rows["logs"]["file_count"] == 1
    assert rows["model.bin"]["sha256"].startswith("ba7816bf")
    assert rows["nothing.txt"]["status"] == rows["../secret"]["status"] == rows["artifacts"]["status"] == "missing"
    assert "attempts" not in rows
    assert read_manifest(tmp_path) == manifest


def test_a_superseded_manifest_makes_room_and_a_broken_one_is_named(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    supersede(tmp_path)
    (tmp_path / "manifest.json").write_text('{"task_id": "t"}')
    with pytest.raises(ArtifactError, match=r"manifest\.json is not a manifest"):
        read_manifest(tmp_path)
    supersede(tmp_path)
    assert read_manifest(tmp_path) is None
    assert len(list(tmp_path.glob("manifest.*.json"))) == 1


@pytest.fixture(params=["directory", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FsspecArtifactStore:
    return FsspecArtifactStore(str(tmp_path / "store") if request.param == "directory" else f"memory://{uuid4()}")


def test_store_keeps_files_under_keys(store: FsspecArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"file")
    store.write("t1/responses.json", b"{}")
    assert store.put(tmp_path / "in", "t1/a/b.bin") == f"{store.url}/t1/a/b.bin"
    store.get("t1/a/b.bin", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"file"
    assert list(store.keys()) == ["t1/a/b.bin", "t1/responses.json"]
    assert list(store.keys("t1/a")) == ["t1/a/b.bin"]
    store.write("t1/responses.json", b"[]")
    assert store.read("t1/responses.json") == b"[]"
    store.delete("t1/responses.json")
    store.delete("t1/responses.json")
    assert not store.exists("t1/responses.json")
    with pytest.raises(ArtifactError, match=r"has no 't1/responses\.json'"):
        store.read("t1/responses.json")


@pytest.mark.parametrize("key", ["", ".", "/etc/passwd", "../x", "a/../../x", "a\\b"])
def test_store_refuses_keys_that_leave_it(store: FsspecArtifactStore, key: str) -> None:
    with pytest.raises(ArtifactError, match="invalid artifact key"):
        store.write(key, b"")


def test_a_missing_file_system_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", absent)
    with pytest.raises(MissingExtraError, match="s3://") as caught:
        FsspecArtifactStore("s3://bucket/x", {"secret": "hush"})
    assert caught.value.hint == "pip install 'mloc-prefect[s3]'"


def test_long_names_that_are_no_ascii_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("\u6a21" * 83)
    atomic.write_bytes(path, b"x")
    assert path.read_bytes() == b"x"
