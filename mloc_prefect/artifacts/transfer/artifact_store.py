"""Stores files behind fsspec URLs: one protocol, one implementation (`memory://` is its twin in memory)."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from mloc_prefect.artifacts.transfer.outgoing import shown_text
from mloc_prefect.errors import ArtifactError, MissingExtraError
from mloc_prefect.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_EXTRAS = {"s3": "s3", "s3a": "s3", "sftp": "sftp", "ssh": "sftp"}


class ArtifactStore(Protocol):
    """Keeps files under relative keys (`<task id>/responses.json`); every method raises ArtifactError."""

    def put(self, source: Path, key: str) -> str:
        """Store a file and return its URL."""

    def get(self, key: str, target: Path) -> None:
        """Fetch a file."""

    def write(self, key: str, data: bytes) -> str:
        """Store bytes and return their URL."""

    def read(self, key: str) -> bytes:
        """Return the bytes of a key."""

    def exists(self, key: str) -> bool:
        """Return whether a key exists."""

    def url_of(self, key: str) -> str:
        """Return the URL of a key, whether it exists or not."""

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys below `prefix`, sorted."""

    def delete(self, key: str) -> None:
        """Remove a key; a missing one is ignored."""


class FsspecArtifactStore:
    """An `ArtifactStore` on any fsspec URL: a directory, `memory://`, `s3://bucket/prefix`, `sftp://host/path`.

    Files appear complete: they are written under another name and then moved, if the file system can move.

    Args:
        url: URL that the keys are relative to; a plain path is a local directory.
        options: Options of the fsspec file system (endpoint, key, secret ...). They are never shown.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.url = url.rstrip("/") if not url.endswith("://") else url
        self._options = dict(options or {})
        self._fs, self._base = self._guard(lambda: _open(url, self._options), "open", url)

    def __repr__(self) -> str:
        return f"FsspecArtifactStore({shown_text(self.url)!r})"

    @classmethod
    def check_kind(cls, url: str) -> None:
        """Check that there is a file system for this kind of URL, without opening it.

        Raises:
            ArtifactError: The kind is unknown.
            MissingExtraError: Its library is not installed.
        """
        from fsspec import get_filesystem_class

        scheme = url.partition("://")[0]
        try:
            get_filesystem_class(scheme)
        except ImportError as error:
            raise _missing(scheme, error) from error
        except ValueError as error:
            raise ArtifactError(f"{scheme}:// is not a known kind of URL") from error

    def put(self, source: Path, key: str) -> str:
        """Store a file and return its URL."""
        return self._store(key, lambda part: self._fs.put_file(str(source), part))

    def get(self, key: str, target: Path) -> None:
        """Fetch a file."""
        from mloc_prefect.artifacts import atomic

        with atomic.stream(target) as out:
            self._guard(lambda: _copy_out(self._fs, self._path(key), out), "read", key)

    def write(self, key: str, data: bytes) -> str:
        """Store bytes and return their URL."""
        return self._store(key, lambda part: self._fs.pipe_file(part, data))

    def read(self, key: str) -> bytes:
        """Return the bytes of a key."""
        return bytes(self._guard(lambda: self._fs.cat_file(self._path(key)), "read", key))

    def exists(self, key: str) -> bool:
        """Return whether a key exists."""
        return bool(self._guard(lambda: self._fs.exists(self._path(key)), "look up", key))

    def url_of(self, key: str) -> str:
        """Return the URL of a key, whether it exists or not."""
        return f"{self.url}/{key}"

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys below `prefix`, sorted."""
        top = self._path(prefix) if prefix else self._base
        found: list[str] = self._guard(lambda: list(self._fs.find(top)), "list", prefix or "/")
        base = self._base.rstrip("/") + "/"
        yield from sorted(f.removeprefix(base) for f in found if f.startswith(base) and not f.endswith(".part"))

    def delete(self, key: str) -> None:
        """Remove a key; a missing one is ignored."""
        path = self._path(key)
        self._guard(lambda: self._fs.rm_file(path) if self._fs.exists(path) else None, "remove", key)

    def _store(self, key: str, write: Callable[[str], Any]) -> str:
        path = self._path(key)
        part = f"{path}.{uuid4().hex[:8]}.part"

        def steps() -> None:
            self._fs.makedirs(posixpath.dirname(path), exist_ok=True)
            write(part)
            self._fs.mv(part, path)

        self._guard(steps, "write", key)
        return self.url_of(key)

    def _path(self, key: str) -> str:
        clean = posixpath.normpath(key)
        if not key or key.startswith("/") or "\\" in key or clean.startswith("..") or clean == ".":
            raise ArtifactError(f"invalid artifact key {key!r}", hint="use a relative path without '..'")
        return f"{self._base.rstrip('/')}/{clean}"

    def _guard(self, action: Callable[[], Any], verb: str, what: str) -> Any:
        try:
            return action()
        except FileNotFoundError as error:
            raise ArtifactError(f"{shown_text(self.url)} has no {what!r}") from error
        except ImportError as error:
            raise _missing(self.url.split("://", 1)[0], error) from error
        except (OSError, ValueError) as error:
            raise ArtifactError(shown_text(f"cannot {verb} {what!r} at {self.url}: {error}")) from error


def _missing(scheme: str, error: ImportError) -> MissingExtraError:
    extra = _EXTRAS.get(scheme)
    hint = f"pip install 'mloc-prefect[{extra}]'" if extra else None
    return MissingExtraError(f"no file system for {scheme}:// is installed ({error})", hint=hint)


def _open(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    local = local_path(url)
    fs, base = url_to_fs(url if local is None else str(Path(local).expanduser().absolute()), **options)
    return fs, str(base)


def _copy_out(fs: Any, path: str, out: Any) -> None:
    with fs.open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            out.write(chunk)
