"""`checkpoint.load` without a network: paths, archives, tasks, our own endpoint's URLs on the same file system."""

from __future__ import annotations

import dataclasses
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mloc_prefect.artifacts import atomic, imported_checkpoint
from mloc_prefect.artifacts.archive import pack
from mloc_prefect.artifacts.checkpoint import CheckpointRoots, load_checkpoint
from mloc_prefect.artifacts.manifest import Manifest, commit_manifest, survey
from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts
from mloc_prefect.errors import ArtifactError

URL = "http://127.0.0.1:8000/api/v1/results/first/files/final_model.zip"


@pytest.fixture
def places(tmp_path: Path) -> CheckpointRoots:
    (tmp_path / "results" / "me").mkdir(parents=True)
    return CheckpointRoots(
        task_dir=tmp_path / "results" / "me",
        results=tmp_path / "results",
        base=tmp_path,
        cache=tmp_path / "cache",
        allowed=AllowedHosts(loopback=True),
        endpoint="http://mloc.example:9000",
    )


def model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def trained(places: CheckpointRoots, task: str, name: str = "final_model", *, done: bool = True) -> Path:
    folder = model(places.results / task / name)
    if done:
        atomic.write_json(places.results / task / "manifest.json", {})
    return folder


def test_a_folder_is_used_where_it_is(places: CheckpointRoots) -> None:
    folder = model(places.base / "models" / "a")
    assert load_checkpoint({"path": "models/a"}, places) == folder
    assert load_checkpoint({"uri": str(folder)}, places) == folder
    assert load_checkpoint({"type": "http", "path": str(folder), "url": URL}, places) == folder, "path comes first"
    assert load_checkpoint({"path": "models", "subdir": "a"}, places) == folder
    assert load_checkpoint({"path": f"file://{folder}"}, places) == folder
    assert list(places.task_dir.iterdir()) == []


def test_a_home_is_expanded(places: CheckpointRoots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(places.base))
    folder = model(places.base / "m")
    assert load_checkpoint({"path": "~/m"}, places) == folder


@pytest.mark.parametrize("top", [True, False], ids=["one folder", "files"])
def test_an_archive_is_unpacked(top: bool, places: CheckpointRoots) -> None:
    source = model(places.base / "src" / "weights")
    pack(source.parent if top else source, places.base / "m.zip")
    found = load_checkpoint({"path": "m.zip"}, places)
    extracted = places.task_dir / "imported_checkpoint" / "extracted"
    assert found == (extracted / "weights" if top else extracted)
    assert (found / "config.json").read_text() == "{}"
    again = load_checkpoint({"path": "m.zip", "archive_format": "zip"}, places)
    assert again == found, "what an earlier attempt left is emptied"


@pytest.mark.parametrize("added", ["__MACOSX/weights/._config.json", ".DS_Store", "Thumbs.db", "README.md"])
def test_what_file_managers_add_to_an_archive_is_no_model(added: str, places: CheckpointRoots) -> None:
    model(places.base / "src" / "weights")
    (places.base / "src" / added).parent.mkdir(parents=True, exist_ok=True)
    (places.base / "src" / added).write_text("")
    pack(places.base / "src", places.base / "m.zip")
    assert load_checkpoint({"path": (places.base / "m.zip").as_uri()}, places).name == "weights"


def test_subdir_counts_from_the_root_or_from_the_only_folder(places: CheckpointRoots) -> None:
    model(places.base / "src" / "top" / "inner")
    pack(places.base / "src", places.base / "m.zip")
    for subdir in ("top/inner", "inner"):
        assert load_checkpoint({"path": "m.zip", "subdir": subdir}, places).name == "inner"
    for subdir in ("../../..", "nowhere", "/etc"):
        with pytest.raises(ArtifactError, match=r"^Extracted checkpoint path .* does not exist$"):
            load_checkpoint({"path": "m.zip", "subdir": subdir}, places)


def test_a_task_on_this_file_system(places: CheckpointRoots) -> None:
    folder = trained(places, "first")
    adapter = trained(places, "lora", "final_lora")
    for load in ({"task_id": "first"}, {"type": "http", "taskId": "first"}, {"type": "http", "url": URL}):
        assert load_checkpoint(load, places) == folder
    assert load_checkpoint({"task_id": "lora"}, places) == adapter
    ours = "http://mloc.example:9000/api/v1/results/lora/files/final_lora.zip"
    assert load_checkpoint({"type": "http", "url": ours}, places) == adapter
    assert load_checkpoint({"task_id": "lora", "filename": "final_lora.tar.gz"}, places) == adapter
    assert list(places.task_dir.iterdir()) == [], "nothing was copied"


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ({}, "checkpoint.load.path is required for local checkpoints"),
        ({"path": "none"}, "Checkpoint path none not found"),
        ({"path": "a\0b"}, "not found"),
        ({"path": "x" * 5000}, "not found"),
        ({"path": "plain.bin"}, "is a file, but no zip or tar archive"),
        ({"path": "plain.bin", "archive_format": "zip"}, "Failed to unpack checkpoint archive: plain.bin is not a zip"),
        ({"task_id": "nobody"}, "task nobody has no trained weights below"),
        ({"type": "s3"}, "Unsupported checkpoint load type 's3'"),
        ({"type": "http"},
         "checkpoint.load.url is required for HTTP checkpoints (set base_url or ORCHESTRATOR_BASE_URL)"),
        ({"type": "http", "url": " "}, "checkpoint.load.url is required for HTTP checkpoints"),
        ({"type": "http", "url": "http://elsewhere.example/m.zip"}, "host 'elsewhere.example'"),
        ({"type": "http", "url": "file:///etc/passwd"}, "is not an http or https URL"),
        ({"path": "sftp://inner.example/m"}, "host 'inner.example'"),
        ({"path": "zip://a::http://inner.example/m"}, "chained URL"),
        ({"type": "http", "url": "http://127.0.0.1:9999/m", "filename": "../evil"}, "is not a plain file name"),
        ({"type": "http", "url": "http://127.0.0.1:9999/m", "filename": "a/b"}, "is not a plain file name"),
        ({"path": "memory://none/m.zip", "filename": ".sha256"}, "is not a plain file name"),
        ({"type": "http", "url": "http://127.0.0.1:9999/m", "timeoutSec": "soon"}, "timeoutSec must be a number"),
        ({"type": "http", "url": "http://["}, "is not a URL"),
        ({"path": "http://elsewhere.example/m.zip"}, "host 'elsewhere.example'"),
        ({"type": "http", "url": "http://127.0.0.1:9999/m", "headers": {"A": "b\nc"}},
         "checkpoint.load.headers: 'A' cannot be sent"),
        ({"path": "pipe"}, "Checkpoint path pipe is neither a folder nor a file"),
    ],
)  # fmt: skip
def test_what_is_not_there_or_not_allowed(load: dict[str, Any], message: str, places: CheckpointRoots) -> None:
    (places.base / "plain.bin").write_bytes(b"0" * 99)
    os.mkfifo(places.base / "pipe")
    with pytest.raises(ArtifactError, match=re.escape(message)):
        load_checkpoint(load, places)


def test_a_task_that_is_not_done_is_not_taken_from_the_disk(
    places: CheckpointRoots, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights may be half written; the endpoint decides."""
    trained(places, "first", done=False)
    monkeypatch.setattr("mloc_prefect.artifacts.transfer.file_download._TRIES", 1)
    with pytest.raises(ArtifactError, match=r"Failed to download checkpoint from http://127\.0\.0\.1:59999/"):
        load_checkpoint({"type": "http", "url": URL.replace("8000", "59999")}, places)


def test_hostile_archives_name_the_field(places: CheckpointRoots) -> None:
    import zipfile

    with zipfile.ZipFile(places.base / "evil.zip", "w") as archive:
        archive.writestr("../evil", "x")
    with pytest.raises(ArtifactError, match=r"^Failed to unpack checkpoint archive: member '../evil' leads out"):
        load_checkpoint({"path": "evil.zip"}, places)


def test_an_archive_that_cannot_even_be_looked_into(places: CheckpointRoots) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    (places.base / "evil.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(ArtifactError, match=r"^Failed to unpack checkpoint archive: a header of the archive has more"):
        load_checkpoint({"path": "evil.tar"}, places)


def test_an_archive_is_unpacked_once_a_task(places: CheckpointRoots, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inference looks at a checkpoint twice: for a model, then for an adapter."""
    calls: list[Path] = []
    unpack = imported_checkpoint.unpack
    monkeypatch.setattr(
        imported_checkpoint, "unpack", lambda file, *args, **more: (calls.append(file), unpack(file, *args, **more))
    )
    pack(model(places.base / "src"), places.base / "m.zip")
    assert load_checkpoint({"path": "m.zip"}, places) == load_checkpoint({"path": "m.zip"}, places)
    assert len(calls) == 1
    (places.base / "src" / "config.json").write_text('{"new": 1}')
    pack(places.base / "src", places.base / "m.zip")
    assert (load_checkpoint({"path": "m.zip"}, places) / "config.json").read_text() == '{"new": 1}'


# What `sha256` asks for.

WRONG = "0" * 64


def test_the_digest_of_an_archive_is_checked_before_it_is_unpacked(places: CheckpointRoots) -> None:
    packed = pack(model(places.base / "src"), places.base / "m.zip")
    with pytest.raises(ArtifactError, match=rf"m\.zip is another file: its sha256 is {packed.sha256}, wanted {WRONG}$"):
        load_checkpoint({"path": "m.zip", "sha256": WRONG}, places)
    assert list(places.task_dir.iterdir()) == []
    load_checkpoint({"path": "m.zip"}, places)
    with pytest.raises(ArtifactError, match="is another file"):
        load_checkpoint({"path": "m.zip", "sha256": WRONG}, places)
    for sha in (packed.sha256, packed.sha256.upper()):
        assert (load_checkpoint({"uri": "m.zip", "sha256": sha}, places) / "config.json").is_file()


@pytest.mark.parametrize("url", ["m", "file://{base}/m", "memory://digests/m"])
def test_a_folder_has_no_digest(url: str, places: CheckpointRoots) -> None:
    model(places.base / "m")
    fsspec.filesystem("memory").pipe({"/digests/m/config.json": b"{}"})
    load = {"path": url.format(base=places.base)}
    assert load_checkpoint(load, places).is_dir()
    with pytest.raises(ArtifactError, match="is a folder, and sha256 is that of an archive"):
        load_checkpoint({**load, "sha256": WRONG}, places)


def done(places: CheckpointRoots, *, archive: bool = True) -> tuple[Path, str]:
    """Leave what a finished training does; return its folder, and the digest of its archive."""
    folder = model(places.results / "first" / "final_model")
    sha = pack(folder, folder.with_name("final_model.zip")).sha256 if archive else WRONG
    directory = folder.parent
    entries = survey(directory, result=(0, WRONG))
    commit_manifest(directory, Manifest(task_id="first", generated_at="", entries=entries, spec_sha256=""))
    return folder, sha


NEAR = [
    {"task_id": "first"},
    {"type": "http", "task_id": "first"},
    {"type": "http", "task_id": "first", "filename": "final_model.zip"},
    {"type": "http", "url": URL},
    {"path": URL},
    {"path": "results/first/final_model"},
]


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise ArtifactError("downloaded")

    monkeypatch.setattr("mloc_prefect.artifacts.checkpoint.download", refused)


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("load", NEAR, ids=str)
def test_the_digest_of_what_a_task_trained(load: dict[str, Any], places: CheckpointRoots) -> None:
    folder, sha = done(places)
    assert load_checkpoint({**load, "sha256": sha}, places) == folder, "the manifest knows it"
    with pytest.raises(ArtifactError, match=f"another file: its sha256 is {sha}, wanted {WRONG}"):
        load_checkpoint({**load, "sha256": WRONG}, places)
    folder.with_name("final_model.zip").unlink()  # as `mloc gc` does
    assert load_checkpoint({**load, "sha256": sha}, places) == folder
    (model(places.base / "other") / "new").write_text("")
    other = pack(places.base / "other", folder.with_name("final_model.zip"))
    found = load_checkpoint({**load, "sha256": other.sha256}, places)
    assert found.is_relative_to(places.task_dir), "somebody put another archive there, and means that"
    assert (found / "new").is_file()


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize(
    ("load", "message"),
    [
        ({"type": "http", "url": URL}, "downloaded"),
        ({"type": "http", "task_id": "first"}, "downloaded"),
        ({"task_id": "first"}, "of which an archive has sha256 0000"),
    ],
)
def test_a_digest_that_nothing_tells(load: dict[str, Any], message: str, places: CheckpointRoots) -> None:
    folder, _ = done(places, archive=False)
    assert load_checkpoint(load, places) == folder
    allowed = AllowedHosts(frozenset({"mloc.example"}), loopback=True)
    with pytest.raises(ArtifactError, match=message):
        load_checkpoint({**load, "sha256": WRONG}, dataclasses.replace(places, allowed=allowed))


@pytest.mark.parametrize("note", ["{sha}  m.zip\n", "{SHA}", "", "see the release page"])
def test_digests_beside_archives_of_others(note: str, places: CheckpointRoots) -> None:
    packed = pack(model(places.base / "src"), places.base / "m.zip")
    text = note.format(sha=packed.sha256, SHA=packed.sha256.upper())
    memory = fsspec.filesystem("memory")
    memory.pipe({"/digests/m.zip": packed.path.read_bytes(), "/digests/m.zip.sha256": text.encode()})
    found = load_checkpoint({"path": "memory://digests/m.zip"}, places)
    assert (found / "config.json").is_file()
    assert sorted(p.name for p in found.parent.iterdir()) == [".fetched.json", "extracted"]
