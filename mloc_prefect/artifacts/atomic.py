"""Files that are either whole or absent: written beside their place, flushed to disk, then moved into it."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from uuid import uuid4

from mloc_prefect.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK = 1 << 20


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write `value` as UTF-8 JSON (non-ASCII text kept as it is).

    Raises:
        ArtifactError: The file cannot be written.
        TypeError: `value` is not JSON.
    """
    write_bytes(path, encode_json(value, indent=indent))


def encode_json(value: Any, *, indent: int | None = 2) -> bytes:
    r"""Return `value` as UTF-8 JSON with a final newline; half of a surrogate pair becomes its `\ud800` escape."""
    return (json.dumps(value, ensure_ascii=False, indent=indent) + "\n").encode("utf-8", "backslashreplace")


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, replacing what is there.

    Raises:
        ArtifactError: The file cannot be written.
    """
    with stream(path) as file:
        file.write(data)


@contextmanager
def stream(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that takes the place of `path` when the block ends without an error.

    Raises:
        ArtifactError: The file cannot be written; `path` is then as it was.
    """
    part = _part(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            yield file
            _flush(file)
        part.replace(path)
    except OSError as error:
        raise _cannot("write", path, error) from error
    finally:
        with suppress(OSError):
            part.unlink()


def copy(source: Path, target: Path) -> tuple[int, str]:
    """Copy a file into place and return its size in bytes and its SHA-256 (hex).

    Raises:
        ArtifactError: `source` cannot be read or `target` cannot be written.
    """
    with stream(target) as file:
        return _pump(source, file)


def digest(path: Path) -> tuple[int, str]:
    """Return size in bytes and SHA-256 (hex) of a file.

    Raises:
        ArtifactError: The file cannot be read.
    """
    return _pump(path, None)


def create_exclusive(path: Path, data: bytes) -> bool:
    """Create `path` with `data` unless it exists; of several callers exactly one gets True.

    The file appears with its whole content (hard link of a finished file), so that readers never see half of it.

    Raises:
        ArtifactError: The file cannot be written.
    """
    part = _part(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            file.write(data)
            _flush(file)
        try:
            os.link(part, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links: exclusive, though readers may see it grow
            return _create_in_place(path, data)
    except OSError as error:
        raise _cannot("write", path, error) from error
    finally:
        with suppress(OSError):
            part.unlink()
    return True


def read_json(path: Path) -> Any:
    """Return the JSON value in `path`.

    Raises:
        FileNotFoundError: There is no such file.
        ArtifactError: It cannot be read, or it is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _cannot("read", path, error) from error
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON: {error}") from error


def _part(path: Path) -> Path:
    # A name of its own for each writer: two writers of one path never share a part file.
    short = os.fsencode(path.name)[:80].decode(errors="ignore")  # bytes: file systems count these
    return path.with_name(f".{short}.{uuid4().hex[:12]}.part")


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _pump(source: Path, target: IO[bytes] | None) -> tuple[int, str]:
    sha, size = hashlib.sha256(), 0
    try:
        with source.open("rb") as file:
            while chunk := file.read(_CHUNK):
                sha.update(chunk)
                size += len(chunk)
                if target is not None:
                    target.write(chunk)
    except OSError as error:
        raise _cannot("read", source, error) from error
    return size, sha.hexdigest()


def _create_in_place(path: Path, data: bytes) -> bool:
    try:
        with path.open("xb") as file:
            file.write(data)
            _flush(file)
    except FileExistsError:
        return False
    return True


def _cannot(verb: str, path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(f"cannot {verb} {path}: {error.strerror or error}")
