"""Opens tar archives of unknown origin: headers of a member are read only up to a limit.

Long names, PAX records and maps of sparse files declare their own size, and tarfile reads them whole into memory: some
hundred kilobytes of a compressed archive can request gigabytes.
"""

from __future__ import annotations

import re
import tarfile
from typing import Any, Self

from mloc_prefect.errors import ArtifactError

MOST_HEADERS = 1 << 20
"""Maximum bytes of headers before one member; the longest accepted name has a thousandth of it."""

_DIGITS = re.compile(rb"\d{256}")  # no name has so many, and Python < 3.11.10 needs quadratic time to parse them


class UnsafeArchiveError(ArtifactError):
    """An archive that must not be unpacked."""


def open_tar(file: Any) -> tarfile.TarFile:
    """Open a tar archive, compressed or not, from a path or a seekable file.

    Raises:
        UnsafeArchiveError: Here, or when members are read: the headers of a member are too large.
        tarfile.TarError: It is not a tar archive.
    """
    source: dict[str, Any] = {"fileobj": file} if hasattr(file, "read") else {"name": file}
    return tarfile.open(mode="r:*", tarinfo=_Member, **source)


class _Member(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        """Read all headers of the next member; tarfile calls this again for each further header of it."""
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
    """The file, limited while headers are read."""

    def __init__(self, file: Any) -> None:
        self._file, self._left = file, MOST_HEADERS

    def read(self, size: int) -> bytes:
        self._left -= size
        if size < 0 or self._left < 0:  # a negative size would read the whole file
            raise UnsafeArchiveError(f"a header of the archive has more than {MOST_HEADERS >> 10} KiB")
        data: bytes = self._file.read(size)
        if _DIGITS.search(data):
            raise UnsafeArchiveError("a header of the archive has a number of more than 255 digits")
        return data

    def tell(self) -> int:
        offset: int = self._file.tell()
        return offset
