"""Packs a folder into one file, in one pass and with constant memory.

Members are stored, never deflated: weights do not shrink, and deflating takes a hundred times as long as copying. Names
are sorted and times are fixed, so that the same files give the same bytes and an upload can be skipped.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Literal

from mloc_prefect.artifacts import atomic
from mloc_prefect.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Format = Literal["zip", "tar"]

_CHUNK = 1 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time in a zip file
_MODE = 0o644


@dataclass(frozen=True, slots=True)
class PackedArchive:
    """A packed archive.

    Attributes:
        path: The file.
        size: Bytes.
        sha256: Hex digest of the file.
    """

    path: Path
    size: int
    sha256: str


def pack(
    folder: Path,
    target: Path,
    *,
    form: Format = "zip",
    on_progress: Callable[[float], None] = lambda _fraction: None,
) -> PackedArchive:
    """Pack the regular files below `folder` into `target`, with paths relative to `folder`.

    Args:
        folder: Folder to pack; links in it are skipped.
        target: The archive; it appears when it is complete.
        form: `zip` or `tar` (not compressed).
        on_progress: Called with the fraction of packed bytes; may raise to stop.

    Raises:
        ArtifactError: The folder has no files, or a file cannot be read or written.
    """
    files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.is_symlink())
    if not files:
        raise ArtifactError(f"{folder} holds no files to pack")
    meter = _Meter(sum(f.stat().st_size for f in files), on_progress)
    with atomic.stream(target) as file:
        out = _Stream(file)
        if form == "zip":
            _write_zip(folder, files, out, meter)
        else:
            _write_tar(folder, files, out, meter)
    return PackedArchive(target, out.size, out.sha.hexdigest())


class _Stream(io.RawIOBase):
    """A file without seeking: written bytes are hashed, and no header can be patched later."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def write(self, data: bytes) -> int:  # type: ignore[override]  # bytes-like of any kind
        self._file.write(data)
        self.sha.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size


class _Meter:
    def __init__(self, total: int, on_progress: Callable[[float], None]) -> None:
        self._total, self._done, self._on_progress = max(1, total), 0, on_progress

    def add(self, size: int) -> None:
        self._done += size
        self._on_progress(min(1.0, self._done / self._total))


def _write_zip(folder: Path, files: list[Path], out: _Stream, meter: _Meter) -> None:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for path in files:
            info = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _EPOCH)
            info.external_attr = (0o100000 | _MODE) << 16
            info.file_size = path.stat().st_size  # decides whether the 64-bit form is used
            with path.open("rb") as source, archive.open(info, "w") as member:
                while chunk := source.read(_CHUNK):
                    member.write(chunk)
                    meter.add(len(chunk))


def _write_tar(folder: Path, files: list[Path], out: _Stream, meter: _Meter) -> None:
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_CHUNK) as archive:
        for path in files:
            info = tarfile.TarInfo(path.relative_to(folder).as_posix())
            info.size, info.mode = path.stat().st_size, _MODE
            with path.open("rb") as source:
                archive.addfile(info, _Metered(source, meter))


class _Metered(io.RawIOBase):
    def __init__(self, file: IO[bytes], meter: _Meter) -> None:
        self._file, self._meter = file, meter

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._meter.add(len(data))
        return data
