"""Keeps local copies of remote folders (fsspec URLs) and files (http), each fetched once."""

from __future__ import annotations

import hashlib
import shutil
import time
import urllib.parse
from contextlib import contextmanager, suppress
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from uuid import uuid4

from fsspec.implementations.local import LocalFileSystem

from mloc_prefect.artifacts.data_files import data_form, is_data_file, open_file_system
from mloc_prefect.artifacts.transfer.file_download import DownloadError, DownloadSource, download
from mloc_prefect.artifacts.transfer.outgoing import TransferError, is_passing, shown_text, shown_url
from mloc_prefect.errors import ArtifactError, reason
from mloc_prefect.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mloc_prefect.artifacts.transfer.file_download import Downloaded
    from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts

_FORMS = {
    "text/csv": "csv",
    "application/csv": "csv",
    "application/json": "json",
    "application/jsonl": "jsonl",
    "application/jsonlines": "jsonl",
    "application/json-lines": "jsonl",
    "application/x-jsonlines": "jsonl",
    "application/x-ndjson": "jsonl",
    "application/ndjson": "jsonl",
    "application/vnd.apache.parquet": "parquet",
    "application/x-parquet": "parquet",
}
_HASHED = 17  # characters of a name in the cache that identify the URL
_FORGOTTEN = 86400.0  # seconds without a change after which an incomplete copy counts as left by a dead process


def fetch_folder(
    url: str,
    cache: Path,
    on_progress: Callable[[float], None] | None = None,
    allowed: AllowedHosts | None = None,
) -> Path:
    """Return a local copy of the folder at `url`, fetched if it is not in `cache` yet.

    The copy gets its name only when it is complete; concurrent tasks do not disturb each other. A folder whose content
    changes needs a new URL.

    Args:
        url: fsspec URL of a folder; ``file://`` is used in place.
        cache: Folder of all copies.
        on_progress: Called with the fraction of fetched files.
        allowed: Hosts that an http(s) URL may call, redirects included; None for URLs of the operator.

    Raises:
        ArtifactError: It does not exist, is empty, or cannot be read.
    """
    try:
        fs, root = open_file_system(url, allowed)
        local = isinstance(fs, LocalFileSystem)
        target = Path(root) if local else cache / _name(url)
        if target.is_dir():
            return target
        files = [] if local else sorted(str(name) for name in fs.find(root))
        if files == [root] or target.is_file():
            raise ArtifactError(f"{shown_url(url)} is a file, not a folder")
        if not files:
            raise ArtifactError(f"{shown_url(url)} does not exist or is empty")
        with _staging(target) as staging:
            for done, name in enumerate(files):
                copy = staging / _below(root, name)
                copy.parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(name, str(copy))
                if on_progress:
                    on_progress((done + 1) / len(files))
    except (OSError, ImportError, ValueError) as error:
        text = shown_text(f"{url} cannot be fetched: {reason(error)}")
        raise TransferError(text, retryable=local_path(url) is None and is_passing(error)) from None
    return target


def fetch_http(url: str, cache: Path, allowed: AllowedHosts, timeout: float = 30.0) -> Path:
    """Return a fresh local copy of the data file at an http(s) `url`.

    The name of the copy ends with the form of the data: that of the URL if it names one, else that of the header
    `Content-Disposition`, of the URL after redirects, or of the header `Content-Type`.

    Args:
        url: http(s) URL; its host and that of every redirect must be allowed.
        cache: Folder of all copies.
        allowed: Hosts that may be called.
        timeout: Seconds without a byte.

    Raises:
        TransferError: It cannot be fetched; whether another attempt may succeed is in `retryable`.
        ArtifactError: The host is not allowed.
    """
    target, shown = cache / _name(url), shown_url(url)  # a query may hold a signature
    _sweep(target)
    part = target.with_name(f".{target.name}.{uuid4().hex[:12]}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        found = download(DownloadSource(url, timeout=timeout), part, allowed)
        coding = found.headers.get("content-encoding", "identity").strip().lower()
        if coding not in {"identity", "gzip", "x-gzip", ""}:  # readers unpack gzip by its first bytes
            raise DownloadError(f"the server sent Content-Encoding {coding!a}, which was not asked for")
        target = target.with_name(f"{target.name}{_form(url, found)}")
        part.replace(target)
    except DownloadError as error:
        text = f"{shown} cannot be fetched: {error.message}"
        raise TransferError(text, retryable=error.retryable, hint=error.hint) from error
    except OSError as error:
        raise ArtifactError(f"{shown} cannot be fetched: {reason(error)}") from None
    finally:
        part.unlink(missing_ok=True)
    return target


def _form(url: str, found: Downloaded) -> str:
    """Return the ending to add to the name of a copy; empty if its URL has one, or if no form is known."""
    message = Message()
    message["Content-Disposition"] = found.headers.get("content-disposition", "attachment")
    names = (url, message.get_filename() or "", found.url)
    for number, name in enumerate(names):
        path = name if number == 1 else urllib.parse.unquote(urllib.parse.urlsplit(name).path)
        if is_data_file(path):
            return f".{data_form(path)}" if number else ""
    kind = found.headers.get("content-type", "").partition(";")[0].strip().lower()
    return f".{_FORMS[kind]}" if kind in _FORMS else ""


def _name(url: str) -> str:
    """Return a readable, unique file name for `url`."""
    last = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rstrip("/").rpartition("/")[2])
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in last)[-80:]
    return f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{safe or 'data'}"


def _below(root: str, name: str) -> PurePosixPath:
    """Return the path of a remote file below the local copy; object stores accept any text as a name.

    Raises:
        ArtifactError: The path would be outside of the copy.
    """
    path = PurePosixPath(name.removeprefix(root).lstrip("/"))
    if not path.parts or ".." in path.parts or "\0" in name:
        raise ArtifactError(f"{shown_text(name)!a} has no place below its folder, so nothing is fetched")
    return path


def _sweep(target: Path) -> None:
    """Remove incomplete copies that dead processes have left."""
    for part in target.parent.glob(f".{target.name[:_HASHED]}*"):
        with suppress(OSError):  # another process may be removing it too
            newest = max(p.lstat().st_mtime for p in (part, *part.rglob("*")))
            if time.time() - newest > _FORGOTTEN:
                shutil.rmtree(part) if part.is_dir() else part.unlink()


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """Yield a folder next to `target` that becomes `target` when the block succeeds."""
    _sweep(target)
    staging = target.with_name(f".{target.name}.{uuid4().hex[:12]}")  # tasks of one process fetch at once too
    staging.mkdir(parents=True)
    try:
        yield staging
        try:
            staging.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another task was first with the same content
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
