"""Opening tar archives that somebody else made: what stands before a member is read only up to a bound.

Long names, PAX records and maps of sparse files say their own size, and tarfile reads them whole, into memory: some
hundred kilobytes of a compressed archive can ask for gigabytes.
"""

from __future__ import annotations

import re
import tarfile
from typing import Any, Self

from mloc_prefect.errors import ArtifactError

MOST_HEADERS = 1 << 20
"""Bytes that may stand before one member; the longest name that is taken has a thousandth of it."""

_DIGITS = re.compile(rb"\d{256}")  # no name has so many, and Python < 3.11.10 needs their square to look through them


class UnsafeArchiveError(ArtifactError):
    """An archive that must not be unpacked."""


def open_tar(file: Any) -> tarfile.TarFile:
    """Open a tar archive, compressed or not, by its path or as a file that can be read and sought.

    Raises:
        UnsafeArchiveError: Here or when members are read: more stands before one than a name needs.
        tarfile.TarError: It is none.
    """
    place: dict[str, Any] = {"fileobj": file} if hasattr(file, "read") else {"name": file}
    return tarfile.open(mode="r:*", tarinfo=_Member, **place)


class _Member(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        """Read all headers of the next member; tarfile calls this again for each header that another one announces."""
        archive: Any = tarfile
        whole = archive.fileobj
        if isinstance(whole, _Headers):
            return super().fromtarfile(archive)
        archive.fileobj = _Headers(whole)
        try:
            return super().fromtarfile(archive)
        finally:
            archive.fileobj = whole


class _Headers:
    """The file while headers are read from it."""

    def __init__(self, file: Any) -> None:
        self._file, self._left = file, MOST_HEADERS

    def read(self, size: int) -> bytes:
        self._left -= size
        if size < 0 or self._left < 0:  # a size below zero would mean all of the file
            raise UnsafeArchiveError(f"a header of the archive has more than {MOST_HEADERS >> 10} KiB")
        data: bytes = self._file.read(size)
        if _DIGITS.search(data):
            raise UnsafeArchiveError("a header of the archive has a number of more than 255 digits")
        return data

    def tell(self) -> int:
        offset: int = self._file.tell()
        return offset
