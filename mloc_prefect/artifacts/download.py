"""Downloading one file: resumed after a break, checked against its length and digest, written with constant memory."""

from __future__ import annotations

import hashlib
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import IO, TYPE_CHECKING, Any

from mloc_prefect.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from http.client import HTTPMessage
    from pathlib import Path

    from mloc_prefect.artifacts.delivery import AllowedHosts

_CHUNK = 1 << 20
_TRIES = 5
_PAUSE = 0.5  # seconds before the second try, doubled each time
_WORTH_A_RETRY = frozenset({408, 425, 429})
_RANGE = re.compile(r"bytes (\d{1,18})-")
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')
_sleep = time.sleep


class DownloadError(ArtifactError):
    """A file could not be fetched; the message does not name the URL, which the caller shows.

    Attributes:
        retryable: Whether a later try may go better.
    """

    def __init__(self, message: str, *, hint: str | None = None, retryable: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.retryable = retryable


@dataclass(frozen=True, slots=True)
class Source:
    """Where a file comes from.

    Attributes:
        url: http or https.
        headers: Sent to its host only; never shown.
        timeout: Seconds without a byte.
        sha256: What the file must hash to, or None.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = 60.0
    sha256: str | None = None


@dataclass(slots=True)
class _Progress:
    done: int = 0
    total: int | None = None
    tag: str | None = None


def download(
    source: Source,
    target: Path,
    allowed: AllowedHosts,
    on_progress: Callable[[float | None], None] = lambda _fraction: None,
) -> int:
    """Fetch a file and return its size in bytes.

    A connection that breaks is taken up again where it broke, when the server says that the file is still the same
    one. A server that names a SHA-256 as entity tag, as ours does, has it checked.

    Args:
        source: What to fetch.
        target: Where to write; whatever is there is replaced, and removed on any error.
        allowed: Hosts that may be called, redirects included.
        on_progress: Called with the fraction that is there, None when the length is not known; may raise to give up.

    Raises:
        DownloadError: It cannot be had whole, or is not what it should be.
        ArtifactError: The host is not allowed.
    """
    allowed.check(source.url)
    opener = urllib.request.build_opener(_Redirects(allowed, source))
    progress, pause = _Progress(), _PAUSE
    try:
        with target.open("w+b") as file:
            for left in range(_TRIES, 0, -1):
                problem = _try(opener, source, file, progress, on_progress)
                if problem is None:
                    break
                if left == 1:
                    raise DownloadError(problem, retryable=True)
                _sleep(pause)
                pause *= 2
            file.flush()
            _check(target, source, progress)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise DownloadError(f"cannot write {target}: {error.strerror or error}") from error
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return progress.done


def _try(
    opener: urllib.request.OpenerDirector,
    source: Source,
    file: IO[bytes],
    progress: _Progress,
    tell: Callable[[float | None], None],
) -> str | None:
    """Fetch what is missing; return None at the end of the file, else what broke off and is worth another try."""
    headers = {**source.headers, "Accept-Encoding": "identity"}
    if progress.done and progress.tag:
        headers |= {"Range": f"bytes={progress.done}-", "If-Range": progress.tag}
    try:
        answer = opener.open(urllib.request.Request(source.url, headers=headers), timeout=source.timeout)  # noqa: S310 - the scheme was checked
    except urllib.error.HTTPError as error:
        with error:
            return _refused(error.code)
    except (OSError, HTTPException) as error:
        return _text(error)
    with answer:
        if not _begin(answer, file, progress):
            return "the server sent another part than it was asked for"
        return _receive(answer, file, progress, tell)


def _begin(answer: Any, file: IO[bytes], progress: _Progress) -> bool:
    """Take in the headers; without the part that was asked for, the file starts anew.

    Returns:
        Whether what comes is of use: False for a part of another file, or another part, after which all is asked for.
    """
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


def _receive(answer: Any, file: IO[bytes], progress: _Progress, tell: Callable[[float | None], None]) -> str | None:
    while True:
        try:
            chunk = answer.read(_CHUNK)
        except (OSError, HTTPException) as error:
            return _text(error)
        if not chunk:
            break
        file.write(chunk)
        progress.done += len(chunk)
        tell(min(1.0, progress.done / progress.total) if progress.total else None)
    if progress.total is not None and progress.done < progress.total:
        return f"only {progress.done} of {progress.total} bytes came"
    return None


def check_digest(path: Path, wanted: str | None) -> None:
    """Return when a file has this SHA-256, or when none is known.

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


def _check(path: Path, source: Source, progress: _Progress) -> None:
    named = _SHA256.fullmatch(progress.tag or "")
    check_digest(path, source.sha256 or (named[1] if named else None))


def _refused(code: int) -> str:
    """Return what a refusal says, if it is worth another try.

    Raises:
        DownloadError: It is not.
    """
    text = f"the server answered status {code}"
    if code >= 500 or code in _WORTH_A_RETRY:
        return text
    hints = {401: "the header Authorization is missing or wrong", 403: "the token is wrong", 404: "it is not there"}
    raise DownloadError(text, hint=hints.get(code))


def _text(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return " ".join(str(reason).split()) or type(error).__name__


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to allowed hosts only, and leaves the user's headers behind at another origin."""

    def __init__(self, allowed: AllowedHosts, source: Source) -> None:
        self._allowed, self._source = allowed, source

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """Check the new address, then do as usual."""
        self._allowed.check(newurl)
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and _origin(newurl) != _origin(self._source.url):
            for name in self._source.headers:
                new.remove_header(name.capitalize())
        return new


def _origin(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc
