"""Downloads one file: resumed after a break, checked against its length and digest, in constant memory."""

from __future__ import annotations

import hashlib
import re
import time
import urllib.error
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import IO, TYPE_CHECKING, Any

from mloc_prefect.artifacts.transfer.outgoing import (
    LONGEST_WAIT,
    TransferError,
    is_passing,
    is_temporary,
    open_url,
)
from mloc_prefect.errors import reason
from mloc_prefect.process.backoff import Backoff, retry_after
from mloc_prefect.process.proxies import through

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts

_CHUNK = 1 << 20
_TRIES = 5
_WAITS = Backoff(first=0.5)
_RANGE = re.compile(r"bytes (\d{1,18})-")
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')
_sleep = time.sleep


class DownloadError(TransferError):
    """A file could not be fetched; the message does not name the URL, which the caller shows."""


@dataclass(frozen=True, slots=True)
class DownloadSource:
    """A file to download.

    Attributes:
        url: http or https.
        headers: Headers of the user, sent to its origin only and never shown.
        timeout: Seconds without a byte.
        sha256: Digest that the file must have, or None.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = 60.0
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Downloaded:
    """What a server said of a file.

    Attributes:
        size: Bytes.
        url: Where it came from, after redirects.
        headers: Headers of the answer; names in lower case.
    """

    size: int
    url: str
    headers: Mapping[str, str]


@dataclass(slots=True)
class _Progress:
    done: int = 0
    total: int | None = None
    tag: str | None = None
    url: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    asked_to_wait: float = 0.0


def download(
    source: DownloadSource,
    target: Path,
    allowed: AllowedHosts,
    on_progress: Callable[[float | None], None] = lambda _fraction: None,
) -> Downloaded:
    """Download a file and return what the server said of it.

    A download that breaks is resumed where it broke, if the server confirms that the file is unchanged. If the entity
    tag is a SHA-256, as that of our endpoint is, it is checked. A server that names a time in `Retry-After` is not
    asked again before, unless that is too long.

    Args:
        source: The file.
        target: File to write; an existing file is replaced, and removed after any error.
        allowed: Hosts that may be called, redirects included.
        on_progress: Called with the fraction so far, None when the length is unknown; may raise to stop.

    Raises:
        DownloadError: The file cannot be downloaded completely, or has another digest.
        ArtifactError: The host is not allowed.
    """
    progress = _Progress()
    try:
        with target.open("w+b") as file:
            for left, pause in zip(range(_TRIES, 0, -1), _WAITS, strict=False):
                progress.asked_to_wait = 0.0
                problem = _try(source, allowed, file, progress, on_progress)
                if problem is None:
                    break
                if left == 1:
                    raise DownloadError(problem, retryable=True)
                _sleep(max(pause, min(progress.asked_to_wait, LONGEST_WAIT)))
            file.flush()
            _check(target, source, progress)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise DownloadError(f"cannot write {target}: {error.strerror or error}") from error
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return Downloaded(progress.done, progress.url, progress.headers)


def _try(
    source: DownloadSource,
    allowed: AllowedHosts,
    file: IO[bytes],
    progress: _Progress,
    on_progress: Callable[[float | None], None],
) -> str | None:
    """Fetch the missing rest; return None at the end of the file, else an error that another try may avoid."""
    own = {"Accept-Encoding": "identity"}
    if progress.done and progress.tag:
        own |= {"Range": f"bytes={progress.done}-", "If-Range": progress.tag}
    try:
        answer = open_url(source.url, allowed, timeout=source.timeout, headers=source.headers, own_headers=own)
    except urllib.error.HTTPError as error:
        with error:
            progress.asked_to_wait = retry_after(error.headers.get("Retry-After"))
            return _refused(error.code)
    except (OSError, HTTPException) as error:
        if not is_passing(error):
            raise DownloadError(f"{_text(error)}{through(source.url)}") from error
        return f"{_text(error)}{through(source.url)}"
    with answer:
        if not _begin(answer, file, progress):
            return "the server sent another range than requested"
        return _receive(answer, file, progress, on_progress)


def _begin(answer: Any, file: IO[bytes], progress: _Progress) -> bool:
    """Read the headers; without the requested range the file starts from the beginning.

    Returns:
        Whether the body is usable: False for the range of another file, or another range; then all is requested again.
    """
    progress.url = answer.geturl()
    progress.headers = {name.lower(): value for name, value in answer.headers.items()}
    tag, length = answer.headers.get("ETag") or "", answer.headers.get("Content-Length") or ""
    part = answer.status == 206
    start = _RANGE.match(answer.headers.get("Content-Range") or "")
    other = part and ((start and int(start[1]) != progress.done) or (progress.tag and tag and tag != progress.tag))
    if other or not part:
        progress.done, progress.total = 0, int(length) if length.isdecimal() else None
        file.seek(0)
        file.truncate()
    progress.tag = None if other or tag.startswith("W/") else tag or None
    return not other


def _receive(
    answer: Any, file: IO[bytes], progress: _Progress, on_progress: Callable[[float | None], None]
) -> str | None:
    while True:
        try:
            chunk = answer.read(_CHUNK)
        except (OSError, HTTPException) as error:
            return _text(error)
        if not chunk:
            break
        file.write(chunk)
        progress.done += len(chunk)
        on_progress(min(1.0, progress.done / progress.total) if progress.total else None)
    if progress.total is not None and progress.done < progress.total:
        return f"received only {progress.done} of {progress.total} bytes"
    return None


def check_digest(path: Path, wanted: str | None) -> None:
    """Check that a file has this SHA-256; None: any.

    Raises:
        DownloadError: It has another one.
        OSError: It cannot be read.
    """
    if wanted is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted.strip().lower():
        raise DownloadError(f"its sha256 is {found}, wanted {wanted}")


def _check(path: Path, source: DownloadSource, progress: _Progress) -> None:
    named = _SHA256.fullmatch(progress.tag or "")
    check_digest(path, source.sha256 or (named[1] if named else None))


def _refused(code: int) -> str:
    """Return the error text of a refusal that may be temporary.

    Raises:
        DownloadError: Another try makes no sense.
    """
    text = f"the server answered status {code}"
    if is_temporary(code):
        return text
    hints = {401: "the header Authorization is missing or wrong", 403: "the token is wrong", 404: "it is not there"}
    raise DownloadError(text, hint=hints.get(code))


def _text(error: Exception) -> str:
    cause = getattr(error, "reason", None) or error  # what `urllib` wraps: an error, or text
    return reason(cause if isinstance(cause, Exception) else OSError(cause))
