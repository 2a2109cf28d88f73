"""Packing folders, and unpacking archives of people who mean harm: nothing outside the target is touched."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.artifacts import tar_reader
from mloc_prefect.artifacts import unpack as unpacking
from mloc_prefect.artifacts.archive import pack
from mloc_prefect.artifacts.unpack import UnsafeArchiveError, kind_of, unpack
from mloc_prefect.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 9000, "deep/er/a b.txt": b"x", "empty": b""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in FILES.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(data)
    (tmp_path / "model" / "link").symlink_to("/etc/passwd")
    return tmp_path / "model"


def tree(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@contextmanager
def memory_below(most: int) -> Iterator[None]:
    """Fail when the block holds `most` bytes or more at any time."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most, f"{peak >> 20} MiB"


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_what_is_packed_comes_back(form: Any, folder: Path, tmp_path: Path) -> None:
    told: list[float] = []
    packed = pack(folder, tmp_path / f"model.{form}", form=form, on_progress=told.append)
    data = packed.path.read_bytes()
    assert (packed.size, packed.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert kind_of(packed.path) == form
    assert told[-1] == 1.0
    target = unpack(packed.path, tmp_path / "back", kind=form)
    assert tree(target) == FILES, "links are left out"
    again = pack(folder, tmp_path / f"again.{form}", form=form)
    assert again.sha256 == packed.sha256, "the same files give the same bytes"


def test_members_are_stored_and_others_can_read_them(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "m.zip")
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        assert archive.testzip() is None
        assert {i.compress_type for i in archive.infolist()} == {zipfile.ZIP_STORED}
        assert sorted(archive.namelist()) == sorted(FILES)
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == []


def test_an_empty_folder_and_giving_up(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(ArtifactError, match="holds no files"):
        pack(tmp_path / "none", tmp_path / "x.zip")

    def stop(_fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(folder, tmp_path / "x.zip", on_progress=stop)
    assert not (tmp_path / "x.zip").exists()
    packed = pack(folder, tmp_path / "y.zip")
    with pytest.raises(KeyboardInterrupt):
        unpack(packed.path, tmp_path / "back", kind="zip", on_progress=stop)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "none", "y.zip"]


# Archives of people who mean harm.


def zip_of(*members: tuple[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return out.getvalue()


def zip_info(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def tar_of(*members: tarfile.TarInfo, mode: str = "w", data: bytes = b"x") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for info in members:
            info.size = len(data) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return out.getvalue()


def tar_info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **more: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    for key, value in more.items():
        setattr(info, key, value)
    return info


def encrypted() -> bytes:
    data = bytearray(zip_of(("a", b"secret")))
    data[6] |= 1  # flag in the local header, and in the central one
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def larger_than_it_says() -> bytes:
    data = bytearray(zip_of(("a", b"0" * 5000), compression=zipfile.ZIP_DEFLATED))
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = struct.pack("<I", 10)
    return bytes(data)


def header(kind: bytes, size: int) -> bytes:
    """Return the header of a name or of records that take `size` bytes; tobuf() would refuse one below zero."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = kind, abs(size)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if size < 0:
        block[124:136] = b"\xff" * 8 + struct.pack(">i", size)
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def announced(kind: bytes, size: int, data: bytes = b"") -> bytes:
    """Return a compressed tar whose first header announces `size` bytes."""
    padded = data or bytes(max(size, 4_000_000))
    padded += bytes(-len(padded) % 512)
    return gzip.compress(header(kind, size) + padded + tar_info("x").tobuf() + bytes(1024), 1)


def sparse_map(blocks: int) -> bytes:
    """Return a tar with a sparse file whose map goes on and on."""
    info = bytearray(tar_info("s", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    info[482] = 1
    info[148:156] = b" " * 8
    info[148:156] = b"%06o\0 " % sum(info)
    more = (b"00000000001\0" * 42).ljust(512, b"\1")
    return gzip.compress(bytes(info) + more * blocks + bytes(1024), 1)


PAX_MAP = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s", "GNU.sparse.realsize": "9"}

HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "zip: above the target": ("leads out", lambda: zip_of(("../evil", b"x"))),
    "zip: above, hidden in the middle": ("leads out", lambda: zip_of(("a/../../evil", b"x"))),
    "zip: absolute": ("absolute", lambda: zip_of(("/tmp/evil", b"x"))),
    "zip: drive": ("absolute or foreign", lambda: zip_of(("C:/evil", b"x"))),
    "zip: backslashes": ("absolute or foreign", lambda: zip_of(("..\\evil", b"x"))),
    "zip: link": ("is a link", lambda: zip_of((zip_info("l", stat.S_IFLNK | 0o777), b"/etc"))),
    "zip: device": ("is a device", lambda: zip_of((zip_info("d", stat.S_IFCHR | 0o666), b""))),
    "zip: pipe": ("is a pipe", lambda: zip_of((zip_info("p", stat.S_IFIFO | 0o666), b""))),
    "zip: twice": ("occurs twice", lambda: zip_of(("a", b"1"), ("./a", b"2"))),
    "zip: file that is a folder too": ("lies below the file", lambda: zip_of(("a", b"1"), ("a/b", b"2"))),
    "zip: folder that is a file too": ("occurs twice", lambda: zip_of(("a/b", b"1"), ("a", b"2"))),
    "zip: encrypted": ("is encrypted", encrypted),
    "zip: control characters": ("control characters", lambda: zip_of(("a\nb", b"x"))),
    "zip: name too long": ("too long", lambda: zip_of(("a" * 300, b"x"))),
    "zip: too deep": ("too deep", lambda: zip_of(("a/" * 50 + "b", b"x"))),
    "zip: bomb": ("would unpack to more", lambda: zip_of(("a", b"0" * 40_000_000), compression=zipfile.ZIP_DEFLATED)),
    "zip: larger than it says": ("not a whole zip archive", larger_than_it_says),
    "zip: no members": ("holds no files", zip_of),
    "zip: cut off": ("not a whole zip", lambda: zip_of(("a", b"0" * 5000))[:3000]),
    "tar: above the target": ("leads out", lambda: tar_of(tar_info("../evil"))),
    "tar: absolute": ("absolute", lambda: tar_of(tar_info("/tmp/evil"))),
    "tar: link": ("is a link", lambda: tar_of(tar_info("l", tarfile.SYMTYPE, "/etc"))),
    "tar: link, then a file through it": (
        "is a link", lambda: tar_of(tar_info("l", tarfile.SYMTYPE, ".."), tar_info("l/evil"))),
    "tar: hard link": ("is a link", lambda: tar_of(tar_info("h", tarfile.LNKTYPE, "/etc/passwd"))),
    "tar: device": ("is a device", lambda: tar_of(tar_info("d", tarfile.BLKTYPE))),
    "tar: pipe": ("is a device or pipe", lambda: tar_of(tar_info("f", tarfile.FIFOTYPE))),
    "tar: sparse": ("is sparse", lambda: tar_of(
        tar_info("s", pax_headers=PAX_MAP), data=b"1\n0\n1\n".ljust(512, b"\0") + b"x")),
    "tar: sparse, with an endless map": ("header .* more than 64 KiB", lambda: sparse_map(8_000)),
    "tar: sparse, with an endless map of the other kind": ("header .* more than 64 KiB", lambda: tar_of(
        tar_info("s", pax_headers=PAX_MAP), data=b"999999\n" + b"1\n" * 999_999, mode="w:gz")),
    "tar: endless name": ("header .* more than 64 KiB", lambda: announced(tarfile.GNUTYPE_LONGNAME, 4_000_000)),
    "tar: endless link": ("header .* more than 64 KiB", lambda: announced(tarfile.GNUTYPE_LONGLINK, 4_000_000)),
    "tar: endless records": ("header .* more than 64 KiB", lambda: announced(tarfile.XHDTYPE, 4_000_000)),
    "tar: endless records for all": ("header .* more than 64 KiB", lambda: announced(tarfile.XGLTYPE, 4_000_000)),
    "tar: name to the end of the file": ("header .* more than 64 KiB", lambda: announced(
        tarfile.GNUTYPE_LONGNAME, -512)),
    "tar: records of digits": ("number of more than 255 digits", lambda: announced(
        tarfile.XHDTYPE, 50_000, b"1" * 50_000)),
    "tar: names before names": ("not a whole tar|more than 64 KiB", lambda: gzip.compress(
        (header(tarfile.GNUTYPE_LONGNAME, 512) + bytes(512)) * 9000 + tar_info("x").tobuf())),
    "tar: twice": ("occurs twice", lambda: tar_of(tar_info("a"), tar_info("a"))),
    "tar: cut off": ("not a whole tar|cut off", lambda: tar_of(tar_info("a"), data=b"0" * 9000)[:4000]),
    "tar.gz: bomb": ("would unpack to more", lambda: tar_of(tar_info("a"), mode="w:gz", data=b"0" * 40_000_000)),
    "tar.gz: cut off": (
        "not a whole tar|cut off", lambda: gzip.compress(tar_of(tar_info("a"), data=os.urandom(9000)))[:5000]),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused_in_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "_ALWAYS_FINE", 1 << 20)
    monkeypatch.setattr(tar_reader, "MOST_HEADERS", 64 << 10)
    message, make = HOSTILE[name]
    kind: Any = name[:3]
    archive = tmp_path / f"evil.{kind}"
    archive.write_bytes(make())
    inside = tmp_path / "task" / "imported"
    inside.mkdir(parents=True)
    before = tree(tmp_path)
    with pytest.raises(ArtifactError, match=message) as caught:
        unpack(archive, inside / "extracted", kind=kind)
    assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before
    assert list(inside.iterdir()) == [], "nothing is left behind"
    assert not Path("/tmp/evil").exists()


@pytest.mark.parametrize("name", [name for name, case in HOSTILE.items() if "header" in case[0]])
def test_headers_are_not_read_into_memory(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_reader, "MOST_HEADERS", 64 << 10)
    (tmp_path / "evil").write_bytes(HOSTILE[name][1]())
    with memory_below(2 << 20):
        for look in (kind_of, lambda path: unpack(path, tmp_path / "out", kind="tar")):
            with pytest.raises(UnsafeArchiveError, match="a header of the archive"):
                look(tmp_path / "evil")


def test_headers_of_many_members_do_not_stay(tmp_path: Path) -> None:
    many = [tar_info(f"d{n}", tarfile.DIRTYPE, pax_headers={f"k{n}": "v" * 100_000}) for n in range(60)]
    (tmp_path / "m").write_bytes(tar_of(*many, tar_info("x"), mode="w:gz"))
    with memory_below(4 << 20):
        unpack(tmp_path / "m", tmp_path / "out", kind="tar")


def test_records_for_all_that_follows_do_not_pile_up(tmp_path: Path) -> None:
    pieces = []
    for n in range(60):
        record = f"k{n}={'v' * 100_000}\n".encode()
        record = b"%d " % (len(record) + 7) + record
        assert len(record) == int(record.split()[0])
        pieces += [header(tarfile.XGLTYPE, len(record)), record, bytes(-len(record) % 512), tar_info(f"f{n}").tobuf()]
    (tmp_path / "m").write_bytes(gzip.compress(b"".join(pieces) + bytes(1024), 1))
    del pieces
    with memory_below(4 << 20):
        unpack(tmp_path / "m", tmp_path / "out", kind="tar")
    assert len(list((tmp_path / "out").iterdir())) == 60


def test_a_zip_that_lists_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "_MOST_NAMES", 10_000)
    (tmp_path / "a.zip").write_bytes(zip_of(*((str(n), b"") for n in range(400))))
    with pytest.raises(UnsafeArchiveError, match="list of members is too long"):
        unpack(tmp_path / "a.zip", tmp_path / "out", kind="zip")


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_tars_with_a_fault_are_one_line(mode: str, tmp_path: Path) -> None:
    data = bytearray(tar_of(tar_info("a"), tar_info("b"), mode=mode, data=os.urandom(40_000)))
    data[30_000:30_100] = bytes(100)
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"not a whole tar archive|cannot unpack|cut off") as caught:
        unpack(tmp_path / "a", tmp_path / "out", kind="tar")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_bytes_behind_a_compressed_tar_are_left_but_its_end_is_checked(tmp_path: Path) -> None:
    data = tar_of(tar_info("a"), mode="w:gz", data=os.urandom(40_000))
    (tmp_path / "a").write_bytes(data + b"more")
    assert set(tree(unpack(tmp_path / "a", tmp_path / "out", kind="tar"))) == {"a"}
    for wrong in (data[:-8] + b"wrongsum" + b"more", data[:-8] + b"wrongsum", data[:-4]):
        (tmp_path / "a").write_bytes(wrong)
        with pytest.raises(ArtifactError):
            unpack(tmp_path / "a", tmp_path / "wrong", kind="tar")


def test_a_python_without_liblzma_unpacks_all_but_xz(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(tar_of(tar_info("x"), mode="w:gz"))
    (tmp_path / "a.tar.xz").write_bytes(tar_of(tar_info("x"), mode="w:xz"))
    code = (
        "import sys; sys.modules['lzma'] = sys.modules['_lzma'] = None\n"
        "from pathlib import Path; from mloc_prefect.artifacts.unpack import kind_of, unpack\n"
        "unpack(Path('a.tar.gz'), Path('out'), kind='tar'); print(kind_of(Path('a.tar.xz')))"
    )
    root = Path(unpacking.__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.stdout, result.stderr) == ("None\n", "")
    assert tree(tmp_path / "out") == {"x": b"x"}


def test_there_are_many_kinds() -> None:
    assert len(HOSTILE) >= 20


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MOST_FILES", 3)
    (tmp_path / "a.zip").write_bytes(zip_of(*((str(n), b"") for n in range(4))))
    with pytest.raises(UnsafeArchiveError, match="more than 3 members"):
        unpack(tmp_path / "a.zip", tmp_path / "out", kind="zip")


def test_a_full_disk_is_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.zip").write_bytes(zip_of(("a", b"0" * 5000)))
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 4000})())
    with pytest.raises(UnsafeArchiveError, match="would unpack to more than"):
        unpack(tmp_path / "a.zip", tmp_path / "out", kind="zip")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_compressed_tars_of_others_are_read(mode: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(tar_of(tar_info("top", tarfile.DIRTYPE), tar_info("top/x", mode=0o4777), mode=mode))
    assert kind_of(tmp_path / "a") == "tar"
    unpack(tmp_path / "a", tmp_path / "out", kind="tar")
    found = tmp_path / "out" / "top" / "x"
    assert found.read_bytes() == b"x"
    assert stat.S_IMODE(found.stat().st_mode) & 0o7111 == 0, "no set-uid, nothing to run"


def test_deflated_zips_of_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zip_of(("a/b", b"data" * 100), compression=zipfile.ZIP_DEFLATED))
    unpack(tmp_path / "a.zip", tmp_path / "out", kind="zip")
    assert tree(tmp_path / "out") == {"a/b": b"data" * 100}


def test_other_files_are_no_archives(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"\0" * 100)
    assert kind_of(tmp_path / "model.bin") is None
