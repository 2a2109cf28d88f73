"""Local copies of remote things: folders behind fsspec URLs and files behind http(s), each fetched once."""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from fsspec.core import url_to_fs

from mloc_prefect.artifacts.atomic import stream
from mloc_prefect.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def fetch_folder(url: str, cache: Path, on_progress: Callable[[float], None] | None = None) -> Path:
    """Return a local copy of the folder at `url`, fetched when it is not in `cache` yet.

    The copy appears under its name only when it is complete; two processes that fetch at once do not disturb each
    other. A folder whose content changes must get a new URL.

    Args:
        url: fsspec URL of a folder; ``file://`` is used in place.
        cache: Folder of all copies.
        on_progress: Called with the fraction of files that are there.

    Raises:
        ArtifactError: It does not exist, is empty, or cannot be read.
    """
    try:
        fs, root = url_to_fs(url)
        if fs.protocol == "file" or "file" in fs.protocol:
            return Path(root)
        target = cache / _name(url)
        if target.is_dir():
            return target
        files = sorted(str(name) for name in fs.find(root))
        if not files:
            raise ArtifactError(f"{url} does not exist or is empty")
        with _staging(target) as staging:
            for done, name in enumerate(files):
                place = staging / name.removeprefix(root).lstrip("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(name, str(place))
                if on_progress:
                    on_progress((done + 1) / len(files))
    except (OSError, ImportError, ValueError) as error:
        raise ArtifactError(f"{url} cannot be fetched: {' '.join(str(error).split())}") from None
    return target


def fetch_http(url: str, cache: Path, allowed_hosts: Collection[str], timeout: float = 30.0) -> Path:
    """Return a fresh local copy of the file at an http(s) `url`.

    Args:
        url: Address; its host, and the host of every redirect, must be in `allowed_hosts` (loopback always is).
        cache: Folder of all copies; the name ends like the file in the URL.
        allowed_hosts: Host names, `MLOC_ALLOWED_HOSTS`.
        timeout: Seconds without a byte.

    Raises:
        ArtifactError: The host is not allowed, or the answer is not 200.
    """
    _check_host(url, allowed_hosts)
    target = cache / _name(url)
    opener = urllib.request.build_opener(_CheckedRedirects(allowed_hosts))
    try:
        with opener.open(url, timeout=timeout) as answer, stream(target) as file:
            shutil.copyfileobj(answer, file)
    except urllib.error.HTTPError as error:
        raise ArtifactError(f"{url} answered status {error.code}") from None
    except OSError as error:
        raise ArtifactError(f"{url} cannot be fetched: {' '.join(str(error).split())}") from None
    return target


def _check_host(url: str, allowed: Collection[str]) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in {"http", "https"} or parts.hostname not in {*allowed, *_LOOPBACK}:
        raise ArtifactError(
            f"{parts.scheme}://{parts.hostname} is not an allowed host", hint="add the host to MLOC_ALLOWED_HOSTS"
        )


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to an allowed host, so that an allowed one cannot send us to an inner service."""

    def __init__(self, allowed: Collection[str]) -> None:
        self._allowed = allowed

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: object, newurl: str
    ) -> urllib.request.Request | None:
        """Check the new address, then do as usual."""
        _check_host(newurl, self._allowed)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]  # untyped in use


def _name(url: str) -> str:
    """Return a readable, unique file name for `url`."""
    last = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rstrip("/").rpartition("/")[2])
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in last)[-80:]
    return f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{safe or 'data'}"


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """Yield a folder beside `target` that becomes `target` when all went well."""
    staging = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        try:
            staging.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was first with the same content
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
