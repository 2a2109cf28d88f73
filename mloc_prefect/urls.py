"""URLs as users write them: told apart from paths, turned into paths of this machine, and made ready for the wire.

Standard library only, so that every package can use it.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

LOCAL_SCHEMES = frozenset({"file", "local"})
DEFAULT_PORTS = {"http": 80, "https": 443} | dict.fromkeys(("redis", "rediss", "valkey", "valkeys"), 6379)

# Two letters at least: `c:/x` is a path elsewhere. One slash is enough, because pathlib makes `s3:/x` of `s3://x`.
_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]+):/")
_IP6_HOST = re.compile(r"\A(\s*[A-Za-z][A-Za-z0-9+.-]*://)\[[0-9A-Fa-f:.]*\]")
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PATH_SAFE = "/%:@!$&'()*+,;=~-._"  # RFC 3986, 3.3; `%` stands for escapes that are already there
_QUERY_SAFE = f"{_PATH_SAFE}?"


def scheme_of(text: str) -> str | None:
    """Return the scheme of a URL in lower case, also of one that lost a slash (`s3:/bucket`); None for a path."""
    match = _SCHEME.match(text)
    return match[1].lower() if match else None


def is_chained(text: str) -> bool:
    """Return whether a URL is a chain of fsspec (`simplecache::file:///x`); the host `[::1]` makes none."""
    return "::" in _IP6_HOST.sub(r"\1", text, count=1)


def local_path(text: str) -> str | None:
    """Return `text` as a path of this machine: a path unchanged, a file URL decoded; None for a URL of another kind.

    `file:///a%20b`, `file:/a%20b` and `file://localhost/a%20b` all name `/a b`. What follows `file://` without a slash
    is a relative path.
    """
    scheme = scheme_of(text)
    if scheme is None:
        return text
    if scheme not in LOCAL_SCHEMES:
        return None
    rest = text.strip()[len(scheme) + 1 :]
    if rest.startswith("//"):
        rest = rest[2:]
        if rest.lower().startswith("localhost/"):
            rest = rest[len("localhost") :]
    return unquote(rest)


@dataclass(frozen=True, slots=True)
class WireUrl:
    """An http(s) URL that can be sent.

    Attributes:
        url: ASCII only, percent-encoded, without login and fragment.
        headers: `Authorization` if the URL had a user or a password; never shown.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


def wire_url(url: str) -> WireUrl:
    """Return an http(s) URL as it goes over the wire.

    Text that is not ASCII, blanks and a lone `%` are percent-encoded, existing escapes stay, the host is encoded as
    IDNA, and user and password become a header of Basic authorisation (RFC 7617).

    Raises:
        ValueError: The text is not a URL.
    """
    parts = urlsplit(url.strip())
    login, at, host = parts.netloc.rpartition("@")
    name = (parts.hostname or "") if host.isascii() else _idna(parts.hostname or "")
    port = f":{parts.port}" if parts.port is not None else ""  # raises if it is not a number
    netloc = f"[{name}]{port}" if ":" in name else f"{name}{port}"
    path = quote(_LONE_PERCENT.sub("%25", parts.path), safe=_PATH_SAFE)
    query = quote(_LONE_PERCENT.sub("%25", parts.query), safe=_QUERY_SAFE)
    return WireUrl(urlunsplit((parts.scheme.lower(), netloc, path, query, "")), _basic(login) if at and login else {})


def _idna(host: str) -> str:
    try:
        return host.encode("idna").decode()
    except UnicodeError as error:
        raise ValueError(f"{host!a} is not a host name: {error}") from None


def _basic(login: str) -> dict[str, str]:
    user, _, password = login.partition(":")
    token = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
    return {"Authorization": f"Basic {token}"}
