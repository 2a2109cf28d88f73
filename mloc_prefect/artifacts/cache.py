"""Local copies of remote things: folders behind fsspec URLs and files behind http(s), each fetched once."""

from __future__ import annotations

import hashlib
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING
from uuid import uuid4

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from mloc_prefect.artifacts.atomic import stream
from mloc_prefect.artifacts.delivery import shown_text, shown_url
from mloc_prefect.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from http.client import HTTPMessage

    from mloc_prefect.artifacts.delivery import AllowedHosts

_WITHOUT_HOST = frozenset(
    {"file", "local", "memory", "s3", "s3a", "r2", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "hf"}
)

_HASHED = 17  # characters of a name in the cache that stand for the whole URL
_FORGOTTEN = 86400.0  # seconds without a change, after which what is half fetched is taken to be of a dead process


def fetch_folder(url: str, cache: Path, on_progress: Callable[[float], None] | None = None) -> Path:
    """Return a local copy of the folder at `url`, fetched when it is not in `cache` yet.

    The copy appears under its name only when it is complete; two tasks that fetch at once do not disturb each other.
    A folder whose content changes must get a new URL.

    Args:
        url: fsspec URL of a folder; ``file://`` is used in place.
        cache: Folder of all copies.
        on_progress: Called with the fraction of files that are there.

    Raises:
        ArtifactError: It does not exist, is empty, or cannot be read.
    """
    try:
        fs, root = url_to_fs(url)
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
                place = staging / _below(root, name)
                place.parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(name, str(place))
                if on_progress:
                    on_progress((done + 1) / len(files))
    except (OSError, ImportError, ValueError) as error:
        raise ArtifactError(shown_text(f"{url} cannot be fetched: {' '.join(str(error).split())}")) from None
    return target


def check_url(url: str, allowed: AllowedHosts) -> None:
    """Refuse a URL from a spec that would make this machine call a host which nobody allowed.

    Object stores (``s3://`` and its like) name buckets, not hosts, and pass; everything that names a host must name
    an allowed one; chained URLs are refused, as each link could hide another.

    Raises:
        ArtifactError: It is refused; the hint says how to allow it.
    """
    scheme, _, rest = url.partition("://")
    if "::" in url:
        text = f"{shown_url(url)} is a chained URL, which specs may not use"
        raise ArtifactError(text, hint="add a mirror for it")
    if scheme.lower() not in _WITHOUT_HOST:
        allowed.check(url if scheme in {"http", "https"} else f"https://{rest}")


def fetch_http(url: str, cache: Path, allowed: AllowedHosts, timeout: float = 30.0) -> Path:
    """Return a fresh local copy of the file at an http(s) `url`.

    Args:
        url: Address; its host, and the host of every redirect, must be allowed.
        cache: Folder of all copies; the name ends like the file in the URL.
        allowed: Hosts that may be called.
        timeout: Seconds without a byte.

    Raises:
        ArtifactError: The host is not allowed, the answer is not 200, or it breaks off.
    """
    allowed.check(url)
    target, shown = cache / _name(url), shown_url(url)  # a query may hold a signature
    opener = urllib.request.build_opener(_CheckedRedirects(allowed))
    _sweep(target)
    try:
        with opener.open(url, timeout=timeout) as answer, stream(target) as file:
            shutil.copyfileobj(answer, file)
            if answer.length:  # what is still to come; the library does not mind
                raise ArtifactError(f"{shown} broke off: {answer.length} bytes are missing")
    except urllib.error.HTTPError as error:
        raise ArtifactError(f"{shown} answered status {error.code}") from None
    except (OSError, HTTPException) as error:
        raise ArtifactError(f"{shown} cannot be fetched: {' '.join(str(error).split())}") from None
    return target


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to an allowed host, so that an allowed one cannot send us to an inner service."""

    def __init__(self, allowed: AllowedHosts) -> None:
        self._allowed = allowed

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """Check the new address, then do as usual."""
        self._allowed.check(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _name(url: str) -> str:
    """Return a readable, unique file name for `url`."""
    last = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rstrip("/").rpartition("/")[2])
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in last)[-80:]
    return f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{safe or 'data'}"


def _below(root: str, name: str) -> PurePosixPath:
    """Return the path of a file of a remote folder in its copy; object stores take any text as a name.

    Raises:
        ArtifactError: It would lie elsewhere.
    """
    path = PurePosixPath(name.removeprefix(root).lstrip("/"))
    if not path.parts or ".." in path.parts or "\0" in name:
        raise ArtifactError(f"{shown_text(name)!a} has no place below its folder, so nothing is fetched")
    return path


def _sweep(target: Path) -> None:
    """Remove what processes that died have left half fetched."""
    for part in target.parent.glob(f".{target.name[:_HASHED]}*"):
        with suppress(OSError):  # another one may be doing the same
            newest = max(p.lstat().st_mtime for p in (part, *part.rglob("*")))
            if time.time() - newest > _FORGOTTEN:
                shutil.rmtree(part) if part.is_dir() else part.unlink()


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """Yield a folder beside `target` that becomes `target` when all went well."""
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
