"""Unpacks archives of unknown origin: only plain files and folders, only below the target, only up to a limit.

Every member is checked before it is written, and written into a new folder that gets its name only when all members are
good. Refused are absolute names, `..`, links, devices, duplicate names, names that a file system cannot hold, encrypted
members, and archives that grow beyond any model.
"""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Literal

from mloc_prefect.artifacts.tar_reader import UnsafeArchiveError, open_tar
from mloc_prefect.errors import ArtifactError, reason

if TYPE_CHECKING:
    from collections.abc import Callable

Kind = Literal["zip", "tar"]

MOST_FILES = 100_000
_MOST_GROWTH = 200  # times the size of the archive: weights hardly compress, bombs by a factor of thousands
_ALWAYS_FINE = 1 << 30  # bytes; smaller contents are never a bomb
_LONGEST_NAME = 255
_LONGEST_PATH = 1024
_DEEPEST = 32
_CHUNK = 1 << 20
_SHOWN = 80
_MOST_NAMES = 32 << 20  # bytes of a zip's list of members; it takes ten times as much memory
_XZ_BROKEN: tuple[type[Exception], ...] = ()
with suppress(ImportError):  # a Python built without liblzma cannot read .xz
    from lzma import LZMAError

    _XZ_BROKEN = (LZMAError,)
_BROKEN: tuple[type[Exception], ...] = (
    zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, *_XZ_BROKEN, struct.error,
    NotImplementedError, RuntimeError, ValueError,
)  # fmt: skip


def kind_of(path: Path) -> Kind | None:
    """Return the kind of an archive by its content; None for any other file.

    Raises:
        UnsafeArchiveError: It cannot be inspected safely.
    """
    if zipfile.is_zipfile(path):
        return "zip"
    try:
        open_tar(path).close()
    except _BROKEN:
        return None
    return "tar"


def unpack(
    archive: Path,
    target: Path,
    *,
    kind: Kind,
    on_progress: Callable[[float], None] = lambda _fraction: None,
) -> Path:
    """Unpack `archive` into the new folder `target` and return the folder.

    Args:
        archive: The file.
        target: Must not exist; after an error it does not exist either.
        kind: Kind of the archive, from `kind_of`; a tar may be compressed.
        on_progress: Called with the fraction of the archive that was read; may raise to stop.

    Raises:
        UnsafeArchiveError: A member is not a plain file or folder below the target, or the content is too large.
        ArtifactError: The archive is broken, or a file cannot be written.
    """
    staging = target.with_name(f".{target.name}.{os.getpid()}.part")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        writer = _Writer(staging, _limit(archive, staging))
        with archive.open("rb") as file:
            (_unpack_zip if kind == "zip" else _unpack_tar)(_Watched(file, archive, on_progress), writer)
        if not writer.files:
            raise ArtifactError(f"{archive.name} holds no files")
        staging.rename(target)
    except OSError as error:
        raise ArtifactError(f"cannot unpack {archive.name} to {target}: {error.strerror or error}") from error
    except _BROKEN as error:
        raise ArtifactError(f"{archive.name} is not a whole {kind} archive: {reason(error)}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _limit(archive: Path, folder: Path) -> int:
    """Return the most bytes that may come out: far more than of any model, and no more than the disk has."""
    growth = max(_ALWAYS_FINE, archive.stat().st_size * _MOST_GROWTH)
    return min(growth, shutil.disk_usage(folder).free)


class _Watched:
    """A file that tells how far it was read; seeks go through."""

    def __init__(self, file: IO[bytes], path: Path, tell: Callable[[float], None]) -> None:
        self._file, self._tell = file, tell
        self._total = max(1, path.stat().st_size)
        self.name = str(path)

    def read(self, size: int = -1) -> bytes:
        if size > _MOST_NAMES:  # files are read in small blocks, the list of a zip at once
            raise UnsafeArchiveError("the archive's list of members is too long")
        data = self._file.read(size)
        if len(data) >= _CHUNK // 2:
            self._tell(min(1.0, self._file.tell() / self._total))
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


@dataclass(slots=True)
class _Writer:
    """Writes members below `root`, which nobody else knows yet."""

    root: Path
    limit: int
    size: int = 0
    files: int = 0
    seen: dict[PurePosixPath, bool] = field(default_factory=dict)  # path -> whether it is a folder

    def folder(self, name: str) -> None:
        """Take in a folder."""
        path = _safe(name)
        if path.parts:
            self._note(path, folder=True)
            (self.root / path).mkdir(parents=True, exist_ok=True)

    def file(self, name: str, source: IO[bytes], declared: int) -> None:
        """Write a file whose archive says that it has `declared` bytes."""
        path = _safe(name)
        if not path.parts:
            raise UnsafeArchiveError(f"member {_shown(name)} has no name")
        self._note(path, folder=False)
        self.room(declared)
        self.files += 1
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(target, flags, 0o644), "wb") as out:
            written = 0
            while chunk := source.read(_CHUNK):
                written += len(chunk)
                if written > declared:
                    raise UnsafeArchiveError(f"member {_shown(name)} is larger than it says")
                out.write(chunk)
        if written != declared:
            raise ArtifactError(f"member {_shown(name)} has {written} of {declared} bytes: the archive is cut off")

    def _note(self, path: PurePosixPath, *, folder: bool) -> None:
        """Refuse names that occur twice, and files that would be folders too."""
        if len(self.seen) >= MOST_FILES:
            raise UnsafeArchiveError(f"the archive has more than {MOST_FILES} members")
        if path in self.seen and not (folder and self.seen[path]):
            raise UnsafeArchiveError(f"member {_shown(str(path))} occurs twice")
        for parent in path.parents:
            if self.seen.get(parent) is False:
                raise UnsafeArchiveError(f"member {_shown(str(path))} lies below the file {_shown(str(parent))}")
            if parent.parts:
                self.seen.setdefault(parent, True)
        self.seen[path] = folder

    def room(self, size: int) -> None:
        """Count bytes that came out, or will."""
        self.size += max(0, size)
        if size < 0 or self.size > self.limit:
            raise UnsafeArchiveError(f"the archive would unpack to more than {self.limit >> 20} MiB, so it is refused")


def _unpack_zip(file: _Watched, writer: _Writer) -> None:
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        if sum(info.file_size for info in infos) > writer.limit:  # before anything is written
            raise UnsafeArchiveError(
                f"the archive would unpack to more than {writer.limit >> 20} MiB, so it is refused"
            )
        for info in infos:
            _check_zip_member(info)
            if info.is_dir():
                writer.folder(info.filename)
                continue
            with archive.open(info) as source:
                writer.file(info.filename, source, info.file_size)


def _check_zip_member(info: zipfile.ZipInfo) -> None:
    mode = info.external_attr >> 16
    kind = stat.S_IFMT(mode)
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise UnsafeArchiveError(f"member {_shown(info.filename)} is {_word(kind)}, not a file")
    if info.flag_bits & 0x1:
        raise UnsafeArchiveError(f"member {_shown(info.filename)} is encrypted")
    if "\0" in info.orig_filename:  # zipfile cuts the name there, other readers do not
        raise UnsafeArchiveError(f"member {_shown(info.filename)} has a NUL in its name")


def _unpack_tar(file: _Watched, writer: _Writer) -> None:
    archive: Any  # the types know less of it than its documentation
    with open_tar(file) as archive:
        while (info := archive.next()) is not None:
            archive.members = []  # otherwise the headers of all members stay in memory
            archive.pax_headers.clear()  # those for all that follows: times and comments, which nobody reads
            if info.isdir():
                writer.folder(info.name)
                continue
            if not info.isreg() or info.issparse():
                raise UnsafeArchiveError(f"member {_shown(info.name)} is {_tar_word(info)}, not a file")
            source = archive.extractfile(info)
            assert source is not None  # a regular file
            writer.file(info.name, source, info.size)
        try:
            while rest := archive.fileobj.read(_CHUNK):  # what was compressed is checked at its end only
                writer.room(len(rest))
        except gzip.BadGzipFile as error:
            if not str(error).startswith("Not a gzipped file"):  # bytes behind a stream that was right to its end
                raise


def _safe(name: str) -> PurePosixPath:
    """Return a name as a relative path below the target.

    Raises:
        UnsafeArchiveError: It leads elsewhere, or is no file name.
    """
    shown = _shown(name)
    if "\0" in name or any(ord(c) < 32 for c in name):
        raise UnsafeArchiveError(f"member {shown} has control characters in its name")
    if name.startswith("/") or "\\" in name or (len(name) > 1 and name[1] == ":"):
        raise UnsafeArchiveError(f"member {shown} has an absolute or foreign name")
    path = PurePosixPath(name)
    if ".." in path.parts:
        raise UnsafeArchiveError(f"member {shown} leads out of the target")
    try:
        longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    except UnicodeEncodeError:
        raise UnsafeArchiveError(f"member {shown} has a name that is no text") from None
    if longest > _LONGEST_NAME or len(os.fsencode(name)) > _LONGEST_PATH or len(path.parts) > _DEEPEST:
        raise UnsafeArchiveError(f"member {shown} has a name that is too long or too deep")
    return path


def _tar_word(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return "a link"
    if info.isdev():
        return "a device or pipe"
    return "sparse" if info.issparse() else "of an unknown type"


def _word(kind: int) -> str:
    names = {stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return names.get(kind, "a device")


def _shown(name: str) -> str:
    return ascii(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")
