"""Files that are either whole or absent: written next to their path, flushed to disk, then moved there."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from mloc_prefect.errors import ArtifactError
from mloc_prefect.process.atomic_file import create_once, replacing
from mloc_prefect.process.regular_file import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
    """Write `data` to `path`, replacing an existing file.

    Raises:
        ArtifactError: The file cannot be written.
    """
    with stream(path) as file:
        file.write(data)


@contextmanager
def stream(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` when the block ends without an error.

    Raises:
        ArtifactError: The file cannot be written; `path` is then unchanged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, durable=True) as file:
            yield file
    except OSError as error:
        raise _cannot("write", path, error) from error


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
    """Create `path` with `data` unless it exists; exactly one of several callers gets True.

    The file appears with its whole content (a hard link to a finished file), so that readers never see half of it.

    Raises:
        ArtifactError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return create_once(path, data, mode=0o666, durable=True)
    except OSError as error:
        raise _cannot("write", path, error) from error


def read_json(path: Path) -> Any:
    """Return the JSON value in `path`.

    Raises:
        FileNotFoundError: The file does not exist.
        ArtifactError: It cannot be read, or it is not JSON.
    """
    try:
        with open_regular(path) as file:
            return json.loads(file.read())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _cannot("read", path, error) from error
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON: {error}") from error


def _pump(source: Path, target: IO[bytes] | None) -> tuple[int, str]:
    sha, size = hashlib.sha256(), 0
    try:
        with open_regular(source) as file:
            while chunk := file.read(_CHUNK):
                sha.update(chunk)
                size += len(chunk)
                if target is not None:
                    target.write(chunk)
    except OSError as error:
        raise _cannot("read", source, error) from error
    return size, sha.hexdigest()


def _cannot(verb: str, path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(f"cannot {verb} {path}: {error.strerror or error}")
