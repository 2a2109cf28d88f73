"""Files that appear whole or not at all: written to a name of their own first, then moved into place.

Standard library only. Errors of the system pass through, so that each caller can name what it could not write;
`artifacts.atomic` builds on this.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PRIVATE = 0o600


@contextmanager
def replacing(path: Path, *, mode: int = 0o666, durable: bool = False) -> Iterator[IO[bytes]]:
    """Open a binary file that takes the place of `path` when the block ends without an error.

    Args:
        path: The file; its directory must exist.
        mode: Its mode from the first moment, before the umask.
        durable: Put it on disk before it takes its place, for what must survive a crash of the machine.

    Raises:
        OSError: The file cannot be written; `path` is then as it was.
    """
    part = _part(path)
    try:
        with _created(part, mode) as file:
            yield file
            if durable:
                flush(file)
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink()


def write_whole(path: Path, data: bytes, *, mode: int = PRIVATE, durable: bool = False) -> None:
    """Write `data` to `path`, replacing what is there. Arguments and errors as `replacing`."""
    with replacing(path, mode=mode, durable=durable) as file:
        file.write(data)


def create_once(path: Path, data: bytes, *, mode: int = PRIVATE, durable: bool = False) -> bool:
    """Create `path` with `data` unless it exists; of several callers exactly one gets True.

    The file appears with its whole content (hard link of a finished file), so that readers never see half of it.
    Arguments and errors as `replacing`.
    """
    part = _part(path)
    try:
        with _created(part, mode) as file:
            file.write(data)
            if durable:
                flush(file)
        try:
            os.link(part, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links: exclusive, though readers may see it grow
            return _create_in_place(path, data, mode)
    finally:
        with suppress(OSError):
            part.unlink()
    return True


def flush(file: IO[bytes]) -> None:
    """Put what was written to `file` on disk."""
    file.flush()
    os.fsync(file.fileno())


def _created(path: Path, mode: int) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb")


def _create_in_place(path: Path, data: bytes, mode: int) -> bool:
    try:
        with _created(path, mode) as file:
            file.write(data)
            flush(file)
    except FileExistsError:
        return False
    return True


def _part(path: Path) -> Path:
    # A name of its own for each writer: two writers of one path never share a part file.
    short = os.fsencode(path.name)[:80].decode(errors="ignore")  # bytes: file systems count these
    return path.with_name(f".{short}.{os.urandom(6).hex()}.part")
