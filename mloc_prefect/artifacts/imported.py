"""`<task dir>/imported_checkpoint`: archives with weights, fetched, checked, and unpacked once a task."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from mloc_prefect.artifacts.delivery import shown_url
from mloc_prefect.artifacts.download import DownloadError, check_digest
from mloc_prefect.artifacts.tars import UnsafeArchiveError
from mloc_prefect.artifacts.unpack import Kind, kind_of, unpack
from mloc_prefect.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

IMPORTED = "imported_checkpoint"
NOTE = ".sha256"
"""Where a digest that stands beside a fetched archive lies while it is read."""

_EXTRACTED = "extracted"
_FETCHED = ".fetched.json"
_TARS = frozenset({"tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"})


@dataclass(frozen=True, slots=True)
class Importer:
    """Puts the content of one archive into the directory of a task.

    Attributes:
        folder: Where to; emptied first.
        tell: Told what is being done, and how much of it; may raise to give up.
        sha256: What the archive must hash to, or None.
        subdir: The part of it that is meant, or None.
        form: `archive_format`, or None for what it is by its content.
        filename: What a fetched file is called, or None for what its URL says.
    """

    folder: Path
    tell: Callable[[str, float | None], None]
    sha256: str | None = None
    subdir: str | None = None
    form: str | None = None
    filename: str | None = None

    def unpacked(self, file: Path) -> Path:
        """Return the folder in an archive on this file system.

        Raises:
            ArtifactError: It cannot be read, is no archive, has another digest, or must not be unpacked.
        """
        try:
            found = file.stat()
            stamp = self._stamp(file=str(file), size=found.st_size, changed=found.st_mtime_ns)
            if (kept := self._kept(stamp)) is not None:
                return inside(kept, self.subdir)
            if self.sha256 is not None:
                self.tell("checking checkpoint", None)
                check_digest(file, self.sha256)
            kind = _kind(file, file.name, self.form)
        except OSError as error:
            raise ArtifactError(f"Checkpoint path {file} cannot be read: {error.strerror or error}") from error
        except DownloadError as error:
            raise ArtifactError(f"Checkpoint path {file} is another file: {error.message}") from error
        if kind is None:
            raise ArtifactError(f"Checkpoint path {file} is a file, but no zip or tar archive")
        self._empty()
        return self._extracted(file, kind, stamp)

    def fetched(self, url: str, fetch: Callable[[Path], None]) -> Path:
        """Return the folder in what `fetch` writes to a file, or that file when it is no archive.

        Raises:
            DownloadError: It cannot be had, or has another digest.
            ArtifactError: It must not be unpacked.
        """
        name = _file_name(self.filename or unquote(urlsplit(url).path.rstrip("/").rpartition("/")[2]))
        stamp = self._stamp(url=url, name=name)
        if (kept := self._kept(stamp)) is not None:
            return inside(kept, self.subdir)
        self._empty()
        file = self.folder / name
        try:
            fetch(file)
            kind = _kind(file, name, self.form)
            if kind is None:
                return file
            found = self._extracted(file, kind, stamp)
        except DownloadError as error:
            file.unlink(missing_ok=True)
            text = f"Failed to download checkpoint from {shown_url(url)}: {error.message}"
            raise DownloadError(text, hint=error.hint, retryable=error.retryable) from error
        except ArtifactError:
            file.unlink(missing_ok=True)
            raise
        file.unlink()  # unpacked; weights need not lie there twice
        return found

    def _stamp(self, **source: Any) -> dict[str, Any]:
        return {**source, "sha256": self.sha256, "format": self.form}

    def _kept(self, stamp: Mapping[str, Any]) -> Path | None:
        """Return what was unpacked before for the same request, by an earlier attempt or another part of this one."""
        try:
            if json.loads((self.folder / _FETCHED).read_bytes()) != stamp:
                return None
            return _top(self.folder / _EXTRACTED)
        except (OSError, ValueError):
            return None

    def _empty(self) -> None:
        try:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
        except OSError as error:
            raise ArtifactError(f"cannot make {self.folder}: {error.strerror or error}") from error

    def _extracted(self, file: Path, kind: Kind, stamp: Mapping[str, Any]) -> Path:
        target = self.folder / _EXTRACTED
        try:
            unpack(file, target, kind=kind, on_progress=lambda part: self.tell("unpacking checkpoint", part))
        except ArtifactError as error:
            raise ArtifactError(f"Failed to unpack checkpoint archive: {error.message}", hint=error.hint) from error
        (self.folder / _FETCHED).write_text(json.dumps(stamp))
        return inside(_top(target), self.subdir)


def inside(folder: Path, subdir: str | None) -> Path:
    """Return `subdir` of a folder; it counts from an archive's root, and from its one folder when that has it.

    Raises:
        ArtifactError: There is no such, or it leads out of the folder.
    """
    if subdir is None:
        return folder
    home = folder.parent if folder.parent.name == _EXTRACTED else folder
    for start in dict.fromkeys((folder, home)):
        path = Path(os.path.normpath(start / subdir))
        if path.is_relative_to(start) and path.is_dir():
            return path
    raise ArtifactError(f"Extracted checkpoint path {folder / subdir} does not exist")


def _top(extracted: Path) -> Path:
    """Return the one folder that an archive holds, else the archive's own root."""
    entries = [entry for entry in extracted.iterdir() if not entry.name.startswith(".")]
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else extracted


def _kind(file: Path, name: str, form: str | None) -> Kind | None:
    """Return how to unpack a file, None for not at all. [protocol 4.9].

    Raises:
        ArtifactError: It is not the archive that the spec says.
    """
    asked = (form or "auto").lower()
    if asked == "none":
        return None
    try:
        found = kind_of(file)
    except UnsafeArchiveError as error:
        raise ArtifactError(f"Failed to unpack checkpoint archive: {error.message}") from error
    if asked == "auto":
        return found
    wanted: Kind = "zip" if asked == "zip" or (asked in _TARS and name.endswith(".zip")) else "tar"
    if asked not in _TARS | {"zip"}:
        wanted = "zip" if name.endswith(".zip") else "tar"
    if found != wanted:
        raise ArtifactError(f"Failed to unpack checkpoint archive: {name} is not a {wanted} archive")
    return wanted


def _file_name(name: str) -> str:
    """Return the name that a download gets.

    Raises:
        ArtifactError: It is no plain file name.
    """
    if not name:
        return "checkpoint"
    own = name in {".", "..", _EXTRACTED, _FETCHED, NOTE}
    if own or "/" in name or "\\" in name or "\0" in name or len(os.fsencode(name)) > 255:
        raise ArtifactError(f"checkpoint.load.filename {name[:80]!a} is not a plain file name")
    return name
