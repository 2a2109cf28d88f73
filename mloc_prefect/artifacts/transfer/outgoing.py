"""The rules for requests that leave this machine: allowed hosts, redirects, headers, and how messages show URLs."""

from __future__ import annotations

import re
import socket
import ssl
import urllib.request
from dataclasses import dataclass, field
from gzip import BadGzipFile
from http.client import HTTPException, InvalidURL
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from mloc_prefect.artifacts.transfer.embedded_addresses import forms_of
from mloc_prefect.artifacts.transfer.own_services import (
    THIS_MACHINE,
    OwnServices,
    addresses_of,
    is_here,
    machines_of,
    service_of,
)
from mloc_prefect.artifacts.transfer.pinned_connection import PinnedHandler
from mloc_prefect.errors import ArtifactError
from mloc_prefect.process.exposure import is_loopback
from mloc_prefect.process.port_ranges import UNPRIVILEGED, port_ranges
from mloc_prefect.urls import DEFAULT_PORTS, is_chained, wire_url

if TYPE_CHECKING:
    from collections.abc import Mapping
    from http.client import HTTPMessage

    from mloc_prefect.artifacts.transfer.pinned_connection import Address
    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.urls import WireUrl

_WITHOUT_HOST = frozenset(
    {"file", "local", "memory", "s3", "s3a", "r2", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "hf"}
)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_VALUE = re.compile(r"[\t\x20-\x7e]*")
_CHAIN = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.-]*://)")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_BODY_HEADERS = frozenset({"content-length", "transfer-encoding"})
_NOT_IN_URLS = re.compile(r"[\x00-\x20\x7f\\]")  # programs differ in what they take for the host of such a URL
LONGEST_WAIT = 60.0
"""Seconds that a server may ask for between two tries of one attempt; the next attempt comes later anyway."""

_TEMPORARY = frozenset({408, 425, 429})  # the 4xx that are about the moment, not about the request


class TransferError(ArtifactError):
    """A file or result could not be sent or fetched.

    Attributes:
        retryable: Whether another try may succeed (network, 5xx), or not (4xx, refused URL).
        asked_to_wait: Seconds for which the server asked in `Retry-After`; 0 if it did not.
    """

    def __init__(
        self, message: str, *, retryable: bool = False, hint: str | None = None, asked_to_wait: float = 0.0
    ) -> None:
        super().__init__(message, hint=hint)
        self.retryable = retryable
        self.asked_to_wait = asked_to_wait


class DeliveryError(TransferError):
    """A result could not be delivered, or a URL may not be called."""


@dataclass(frozen=True, slots=True)
class AllowedHosts:
    """Which hosts outgoing requests may name.

    Attributes:
        hosts: Lower-case `host`, `host:port` or `*.domain`.
        loopback: Whether this machine's loopback is allowed too (`mloc run`, `mloc up`).
        ports: Which of its ports, as the setting `loopback_ports` names them.
        own: Our own services, which are never allowed except for the routes of results.
    """

    hosts: frozenset[str] = frozenset()
    loopback: bool = False
    ports: str = UNPRIVILEGED
    own: OwnServices = field(default_factory=OwnServices)

    @classmethod
    def of(cls, settings: MlocSettings, *, loopback: bool, api_url: str | None = None) -> AllowedHosts:
        """Return the hosts of `MLOC_ALLOWED_HOSTS` and the endpoint of the base URL.

        Args:
            settings: The settings in force.
            loopback: Whether this machine's loopback is allowed too.
            api_url: Prefect's API, or None where it is not known.
        """
        named = {h.strip().lower() for h in settings.allowed_hosts.split(",") if h.strip()}
        endpoint = service_of(settings.base_url or "")
        named |= {":".join(map(str, endpoint))} if endpoint else set()
        return cls(frozenset(named), loopback, settings.loopback_ports, OwnServices.of(settings, api_url))

    def to_wire(self) -> dict[str, Any]:
        """Return it as the settings of a request to an executor."""
        return {
            "allowed_hosts": ",".join(sorted(self.hosts)),
            "loopback": self.loopback,
            "loopback_ports": self.ports,
            "own_services": self.own.to_wire(),
        }

    def check(self, url: str) -> None:
        """Refuse an http(s) URL that may not be called.

        Raises:
            DeliveryError: Not http or https, no host, a host that is not allowed, or one of our own services; the hint
                says how to allow a host.
        """
        parts = urlsplit(ready_url(url).url)  # as it is sent: `１２７.0.0.1` is a loopback address too
        host, port = parts.hostname or "", parts.port
        if parts.scheme not in {"http", "https"} or not host or _NOT_IN_URLS.search(urlsplit(url).netloc):
            raise DeliveryError(f"{shown_url(url)!r} is not an http or https URL")
        port = port or DEFAULT_PORTS[parts.scheme]
        if self._allows(host, port):  # first: the names of other hosts are not looked up
            if self.own.names(parts):
                raise _own_service(url)
            return
        if self.loopback and is_loopback(host):
            raise DeliveryError(
                f"port {port} of {shown_url(url)} is not allowed",
                hint=f"set MLOC_LOOPBACK_PORTS={f'{self.ports},'.lstrip(',')}{port} to allow it",
            )
        raise DeliveryError(
            f"host {host!r} of {shown_url(url)} is not allowed",
            hint=f"set MLOC_ALLOWED_HOSTS={host} (comma list) to allow it",
        )

    def addresses(self, url: str) -> list[Address]:
        """Look up the host of a URL, once, and return the addresses at which it may be called.

        Our own services are closed under every name. A name below an allowed `*.domain`, which others may have made,
        leads neither to this machine nor to addresses of its link, in whatever form IPv6 writes them; a name that the
        operator wrote leads where it leads.

        Raises:
            DeliveryError: The URL may not be called, or what its host stands for now may not.
            OSError: The host has no address.
        """
        self.check(url)
        parts = urlsplit(ready_url(url).url)
        host, port = parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme]
        rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        plain = {str(row[4][0]).partition("%")[0] for row in rows}
        found = machines_of(plain)
        if self.own.names(parts, lambda name: found if name == host.lower().rstrip(".") else addresses_of(name)):
            raise _own_service(url)
        if self._is_named(host, port):
            return rows
        # Of the link: there clouds answer with credentials.
        inner = THIS_MACHINE in found or any(form.is_link_local for a in plain for form in forms_of(a))
        if not all(map(is_here, plain)) if is_loopback(host) else inner:
            raise DeliveryError(
                f"host {host!r} of {shown_url(url)} stands for an address that it must not have",
                hint=f"set MLOC_ALLOWED_HOSTS={host} (comma list) to allow it",
            )
        return rows

    def is_loopback(self, url: str) -> bool:
        """Return whether `url` names this machine's loopback, and that is allowed."""
        return self.loopback and is_loopback((urlsplit(url).hostname or "").lower())

    def _allows(self, host: str, port: int) -> bool:
        if self._is_named(host, port):
            return True
        if self.loopback and is_loopback(host) and any(port in ports for ports in port_ranges(self.ports)):
            return True
        return any(h.startswith("*.") and host.endswith(h[1:]) for h in self.hosts)

    def _is_named(self, host: str, port: int) -> bool:
        return any(name in (host, f"{host}:{port}") for name in map(_ascii_host, self.hosts))


def _own_service(url: str) -> DeliveryError:
    return DeliveryError(
        f"{shown_url(url)} is a service of MLOC itself, which specs may not call",
        hint="of the endpoint, only /api/v1/results may be named",
    )


def check_url(url: str, allowed: AllowedHosts) -> None:
    """Refuse a URL of any scheme that would make this machine call a host that is not allowed.

    Object stores (``s3://`` and similar) name buckets, not hosts, and pass; every URL that names a host must name an
    allowed one; chained URLs are refused, because each link could hide another host.

    Raises:
        ArtifactError: It is refused; the hint says how to allow it.
    """
    scheme, _, rest = url.partition("://")
    if is_chained(url):
        text = f"{shown_url(url)} is a chained URL, which specs may not use"
        raise ArtifactError(text, hint="add a mirror for it")
    if scheme.lower() not in _WITHOUT_HOST:
        allowed.check(url if scheme in {"http", "https"} else f"https://{rest}")


def redirected(
    url: str, location: str, headers: Mapping[str, str], allowed: AllowedHosts
) -> tuple[str, Mapping[str, str]]:
    """Return where a redirect leads, and which of the user's headers may be sent there: none to another origin.

    Raises:
        DeliveryError: The new host is not allowed: an allowed host must not send us to an internal service.
    """
    try:
        target = urljoin(url, location)
    except ValueError as error:
        raise DeliveryError(f"{shown_url(location)!r} is not a URL: {error}") from None
    allowed.check(target)
    return target, headers if _origin(target) == _origin(url) else {}


def open_url(
    url: str,
    allowed: AllowedHosts,
    *,
    timeout: float,
    headers: Mapping[str, str] | None = None,
    own_headers: Mapping[str, str] | None = None,
) -> Any:
    """Send a GET request and return the open response.

    Args:
        url: http or https.
        allowed: Hosts that may be called, redirects included.
        timeout: Seconds without a byte.
        headers: The user's headers, sent to the origin of `url` only.
        own_headers: Headers of this package, sent to every host.

    Raises:
        DeliveryError: The URL, or one that it redirects to, may not be called.
        urllib.error.HTTPError: The server refuses.
        OSError: No connection; also `http.client.HTTPException`.
    """
    sent = ready_url(url)
    allowed.check(sent.url)
    headers = {**sent.headers, **(headers or {})}
    opener = urllib.request.build_opener(PinnedHandler(allowed.addresses), _CheckedRedirects(allowed, headers))
    request = urllib.request.Request(sent.url, headers={**headers, **(own_headers or {})})  # noqa: S310 - checked
    try:
        return opener.open(request, timeout=timeout)
    except ValueError as error:  # of the library: the server redirects to what is not a URL
        raise DeliveryError(f"{shown_url(url)} leads to a malformed URL: {error}") from None


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, allowed: AllowedHosts, headers: Mapping[str, str]) -> None:
        self._allowed, self._headers = allowed, headers

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """Apply `redirected`, then do as the library does."""
        _, kept = redirected(req.full_url, newurl, self._headers, self._allowed)
        newurl = ready_url(newurl).url
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None:
            for name in self._headers.keys() - kept.keys():
                new.remove_header(name.capitalize())
        return new


def ready_url(url: str) -> WireUrl:
    """Return a URL as it goes over the wire, with the header of its user and password.

    Raises:
        DeliveryError: The text is not a URL.
    """
    try:
        return wire_url(url)
    except ValueError as error:
        raise DeliveryError(f"{shown_url(url)!r} is not a URL: {error}") from None


def is_passing(error: BaseException) -> bool:
    """Return whether an error of a connection may end by itself: refused, reset, too slow, no name server.

    What stays as it is until someone changes it does not: a file that is missing or may not be read, a host that does
    not exist, a certificate that is wrong.
    """
    cause = getattr(error, "reason", None)  # what `urllib` wraps
    cause = cause if isinstance(cause, BaseException) else error
    if isinstance(cause, socket.gaierror):
        return cause.errno == socket.EAI_AGAIN
    if isinstance(cause, ssl.SSLCertVerificationError):
        return False
    lasting = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, BadGzipFile)
    return isinstance(cause, (OSError, HTTPException)) and not isinstance(cause, (*lasting, InvalidURL))


def is_temporary(status: int) -> bool:
    """Return whether a refusal with this HTTP status may end by itself."""
    return status >= 500 or status in _TEMPORARY


def is_token(text: str) -> bool:
    """Return whether `text` can be the name of a header."""
    return _TOKEN.fullmatch(text) is not None


def sendable_headers(given: Any, where: str) -> dict[str, str]:
    """Return the user's headers as text, without those that describe the body.

    Args:
        given: What the spec has.
        where: Its position in the spec.

    Raises:
        DeliveryError: HTTP cannot carry a name or value. The value is not shown, because it may be a token.
    """
    headers = {str(k): str(v).strip() for k, v in (given if isinstance(given, dict) else {}).items()}
    for name, value in headers.items():
        if not is_token(name) or not _VALUE.fullmatch(value):
            raise DeliveryError(
                f"{where}: {name!r} cannot be sent: a name needs plain letters, a value must be one line of ASCII text"
            )
    return {k: v for k, v in headers.items() if k.lower() not in _BODY_HEADERS}


def shown_url(url: str) -> str:
    """Return `url` for messages: without user name, password and query, also in each link of a chained URL."""
    first, *rest = _CHAIN.split(url)
    if rest:
        return "::".join(shown_url(link) for link in (first, *rest))
    try:
        parts = urlsplit(url)
    except ValueError:
        return "<unreadable url>"
    host = parts.netloc.rsplit("@", 1)[-1]
    return f"{parts.scheme}://{host}{parts.path}" if host else url.split("?", 1)[0]


def shown_text(text: str) -> str:
    """Return a message with its URLs as `shown_url` has them; paths stay."""
    return _URL.sub(lambda url: shown_url(url[0]), text)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _ascii_host(host: str) -> str:
    try:
        return host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        return host
