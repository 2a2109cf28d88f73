"""Fetches, checks and unpacks archives with weights into `<task dir>/imported_checkpoint`, once for each task."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from mloc_prefect.artifacts.tar_reader import UnsafeArchiveError
from mloc_prefect.artifacts.transfer.file_download import DownloadError, check_digest
from mloc_prefect.artifacts.transfer.outgoing import shown_url
from mloc_prefect.artifacts.unpack import Kind, kind_of, unpack
from mloc_prefect.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

IMPORTED = "imported_checkpoint"
NOTE = ".sha256"
"""File name of the digest next to a fetched archive while it is read."""

_EXTRACTED = "extracted"
_FETCHED = ".fetched.json"
_ADDED = re.compile(r"\..*|__MACOSX|thumbs\.db|desktop\.ini|(readme|license)(\.(md|txt))?", re.IGNORECASE)
_TARS = frozenset({"tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"})


@dataclass(frozen=True, slots=True)
class CheckpointImporter:
    """Unpacks one archive into the directory of a task.

    Attributes:
        folder: Target folder; emptied first.
        report: Called with the current step and its fraction; may raise to stop.
        sha256: Digest that the archive must have, or None.
        subdir: Folder inside the archive, or None.
        form: `archive_format`; None: detected from the content.
        filename: Name of the fetched file; None: from its URL.
    """

    folder: Path
    report: Callable[[str, float | None], None]
    sha256: str | None = None
    subdir: str | None = None
    form: str | None = None
    filename: str | None = None

    def unpacked(self, file: Path) -> Path:
        """Return the folder in an archive on this file system.

        Raises:
            ArtifactError: It cannot be read, is not an archive, has another digest, or must not be unpacked.
        """
        try:
            found = file.stat()
            stamp = self._stamp(file=str(file), size=found.st_size, changed=found.st_mtime_ns)
            if (before := self._unpacked_before(stamp)) is not None:
                return inside(before, self.subdir)
            if self.sha256 is not None:
                self.report("checking checkpoint", None)
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
        """Return the folder in the archive that `fetch` writes, or the file itself when it is not an archive.

        Raises:
            DownloadError: It cannot be fetched, or has another digest.
            ArtifactError: It must not be unpacked.
        """
        name = _file_name(self.filename or unquote(urlsplit(url).path.rstrip("/").rpartition("/")[2]))
        stamp = self._stamp(url=url, name=name)
        if (before := self._unpacked_before(stamp)) is not None:
            return inside(before, self.subdir)
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
        file.unlink()  # unpacked: do not keep the weights twice
        return found

    def _stamp(self, **source: Any) -> dict[str, Any]:
        return {**source, "sha256": self.sha256, "format": self.form}

    def _unpacked_before(self, stamp: Mapping[str, Any]) -> Path | None:
        """Return the folder that was unpacked for the same request before, by an earlier attempt or another shard."""
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
            unpack(file, target, kind=kind, on_progress=lambda part: self.report("unpacking checkpoint", part))
        except ArtifactError as error:
            raise ArtifactError(f"Failed to unpack checkpoint archive: {error.message}", hint=error.hint) from error
        (self.folder / _FETCHED).write_text(json.dumps(stamp))
        return inside(_top(target), self.subdir)


def inside(folder: Path, subdir: str | None) -> Path:
    """Return `subdir` of a folder, relative to an archive's root or to the only folder in it.

    Raises:
        ArtifactError: It does not exist, or is outside of the folder.
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
    """Return the only folder in an archive, else the archive's root; what file managers add does not count."""
    entries = [entry for entry in extracted.iterdir() if not _ADDED.fullmatch(entry.name)]
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else extracted


def _kind(file: Path, name: str, form: str | None) -> Kind | None:
    """Return how to unpack a file; None: not at all. [protocol 4.9].

    Raises:
        ArtifactError: It is not an archive of the kind in the spec.
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
    """Return the file name of a download.

    Raises:
        ArtifactError: It is not a plain file name.
    """
    if not name:
        return "checkpoint"
    own = name in {".", "..", _EXTRACTED, _FETCHED, NOTE}
    if own or "/" in name or "\\" in name or "\0" in name or len(os.fsencode(name)) > 255:
        raise ArtifactError(f"checkpoint.load.filename {name[:80]!a} is not a plain file name")
    return name
