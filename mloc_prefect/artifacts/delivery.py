"""The http destination: a finished result is sent to a URL of the user (protocol 4.8)."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from mloc_prefect.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from pathlib import Path

    import httpx

    from mloc_prefect.settings import MlocSettings

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 5
_WORTH_A_RETRY = frozenset({408, 425, 429})  # the 4xx that speak of the moment, not of the request
_SHOWN = 200  # characters of the answer in an error text, as MLOC shows
_CHUNK = 1 << 18
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_VALUE = re.compile(r"[\t\x20-\x7e]*")
STAGE_RUN = "X-MLOC-Stage-Run"
"""Header that names the flow run of the stage whose own runner sends its result."""
_CHAIN = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.-]*://)")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_OF_THE_BODY = frozenset({"content-length", "transfer-encoding"})


class DeliveryError(ArtifactError):
    """A result could not be delivered.

    Attributes:
        retryable: Whether another try may go better (network, 5xx), or not (4xx, refused URL).
    """

    def __init__(self, message: str, *, retryable: bool, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retryable = retryable


@dataclass(frozen=True, slots=True)
class AllowedHosts:
    """Which hosts outgoing requests may name.

    Attributes:
        hosts: Lower-case `host`, `host:port` or `*.domain`.
        loopback: Whether this machine's loopback is allowed too (`mloc run`, `mloc up`).
    """

    hosts: frozenset[str] = frozenset()
    loopback: bool = False

    @classmethod
    def of(cls, settings: MlocSettings, *, loopback: bool) -> AllowedHosts:
        """Return the hosts of `MLOC_ALLOWED_HOSTS` and that of the endpoint's base URL."""
        named = {h.strip().lower() for h in settings.allowed_hosts.split(",") if h.strip()}
        base = urlsplit(settings.base_url or "").hostname
        return cls(frozenset(named | ({base} if base else set())), loopback)

    def check(self, url: str) -> None:
        """Refuse a URL that may not be called.

        Raises:
            DeliveryError: Not http or https, no host, or a host that is not allowed; the text says how to allow it.
        """
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError as error:
            raise DeliveryError(f"{shown_url(url)!r} is not a URL: {error}", retryable=False) from None
        if parts.scheme not in {"http", "https"} or not host:
            raise DeliveryError(f"{shown_url(url)!r} is not an http or https URL", retryable=False)
        if self._allows(host, port or (443 if parts.scheme == "https" else 80)):
            return
        raise DeliveryError(
            f"host {host!r} of {shown_url(url)} is not allowed",
            hint=f"set MLOC_ALLOWED_HOSTS={host} (comma list) to allow it",
            retryable=False,
        )

    def is_loopback(self, url: str) -> bool:
        """Return whether `url` names this machine's loopback, and that is allowed."""
        return self.loopback and _is_loopback((urlsplit(url).hostname or "").lower())

    def _allows(self, host: str, port: int) -> bool:
        if host in self.hosts or f"{host}:{port}" in self.hosts or (self.loopback and _is_loopback(host)):
            return True
        return any(h.startswith("*.") and host.endswith(h[1:]) for h in self.hosts)


@dataclass(frozen=True, slots=True)
class HttpDestination:
    """`spec.output.destination` of type http; headers are never shown.

    Attributes:
        url: Where to send.
        method: Upper-case HTTP method.
        headers: Headers of the user, as text.
        timeout: Seconds.
    """

    url: str
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = 15.0

    @classmethod
    def of(cls, destination: Mapping[str, Any] | None) -> HttpDestination | None:
        """Return the http destination in `output.destination`, or None when it is of another type.

        Raises:
            DeliveryError: Type http without a url, a timeout that is no number, or a method or header that http
                cannot carry; values of headers are not shown.
        """
        destination = destination or {}
        if str(destination.get("type") or "local").strip().lower() != "http":
            return None
        url = str(destination.get("url") or "").strip()
        if not url:
            raise DeliveryError("spec.output.destination.url is required when type is 'http'", retryable=False)
        timeout = destination.get("timeoutSec", destination.get("timeout_sec"))
        try:
            seconds = 15.0 if timeout is None else float(timeout)
        except (TypeError, ValueError):
            raise DeliveryError(
                f"spec.output.destination.timeoutSec must be a number, found {timeout!r}", retryable=False
            ) from None
        method = str(destination.get("method") or "POST").strip().upper()
        if not _TOKEN.fullmatch(method):
            raise DeliveryError(f"spec.output.destination.method {method!r} is not an HTTP method", retryable=False)
        return cls(
            url, method, sendable_headers(destination.get("headers"), "spec.output.destination.headers"), seconds
        )

    def check(self, allowed: AllowedHosts) -> None:
        """Refuse a URL that names a host which nobody allowed.

        Raises:
            DeliveryError: It does; the hint says how to allow it.
        """
        allowed.check(self.url)


def sendable_headers(given: Any, where: str) -> dict[str, str]:
    """Return headers as text; those that describe the body are ours.

    Args:
        given: What the spec has.
        where: Its place there.

    Raises:
        DeliveryError: A name or value that http cannot carry. The value is not shown, as it may be a token.
    """
    headers = {str(k): str(v).strip() for k, v in (given if isinstance(given, dict) else {}).items()}
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise DeliveryError(
                f"{where}: {name!r} cannot be sent: a name needs plain letters, a value must be one line of ASCII text",
                retryable=False,
            )
    return {k: v for k, v in headers.items() if k.lower() not in _OF_THE_BODY}


async def deliver(
    destination: HttpDestination,
    *,
    task_id: str,
    result: Path,
    worker_id: str | None,
    allowed: AllowedHosts,
    stage_run: str | None = None,
    envelope: bool = False,
    transport: httpx.AsyncBaseTransport | None = None,
) -> None:
    """Send `{"task_id", "result", "worker_id"}` with the JSON of the file `result`, or that file alone, streamed.

    Redirects are followed with the same method and body (303: with GET and none), each target being checked like the
    first; the user's headers are not sent to another origin.

    Args:
        destination: Where and how.
        task_id: Id of the task.
        result: File with the result object as JSON.
        worker_id: Who did the work, or None.
        allowed: Hosts that may be named.
        stage_run: Flow run of the stage that sends it, for the header `STAGE_RUN`; not sent to another origin.
        envelope: The file is what is sent: it holds the result of a divided task in its envelope. [protocol 2.7].
        transport: Takes the place of the network (tests).

    Raises:
        DeliveryError: Refused, not reachable, or answered with status >= 400.
    """
    import httpx

    url, method, headers, bare = destination.url, destination.method, dict(destination.headers), False
    if stage_run is not None:
        headers[STAGE_RUN] = stage_run
    try:
        async with httpx.AsyncClient(
            timeout=destination.timeout, follow_redirects=False, transport=transport
        ) as client:
            for _ in range(_MOST_REDIRECTS + 1):
                allowed.check(url)
                body = None if bare else _Body(result) if envelope else _Body.around(task_id, result, worker_id)
                response = await _send(client, method, url, headers, body)
                if response.status_code not in _REDIRECTS or "location" not in response.headers:
                    _judge(response, task_id)
                    return
                target = urljoin(url, response.headers["location"])
                headers = headers if _origin(target) == _origin(url) else {}
                bare = bare or response.status_code == 303
                method = "GET" if bare else method
                url = target
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
        text = str(error) or type(error).__name__
        hopeless = isinstance(error, (httpx.InvalidURL, httpx.LocalProtocolError, httpx.UnsupportedProtocol))
        raise DeliveryError(
            f"Failed to deliver task {task_id} result to {shown_url(url)}: {text}", retryable=not hopeless
        ) from error
    text = f"more than {_MOST_REDIRECTS} redirects"
    raise DeliveryError(
        f"Failed to deliver task {task_id} result to {shown_url(destination.url)}: {text}", retryable=False
    )


def shown_url(url: str) -> str:
    """Return `url` without user name, password and query, for messages; of a chained one in each link."""
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


class _Body:
    """The request body: read from the file while it is sent, so that a large result needs no memory."""

    def __init__(self, file: Path, head: bytes = b"", tail: bytes = b"") -> None:
        self.head, self.file, self.tail = head, file, tail
        self.length = len(head) + file.stat().st_size + len(tail)

    @classmethod
    def around(cls, task_id: str, result: Path, worker_id: str | None) -> _Body:
        """Return the message about a result object."""
        head = b'{"task_id": ' + json.dumps(task_id, ensure_ascii=False).encode() + b', "result": '
        return cls(result, head, b', "worker_id": ' + json.dumps(worker_id, ensure_ascii=False).encode() + b"}")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.head
        with self.file.open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, _CHUNK):
                yield chunk
        yield self.tail


async def _send(
    client: httpx.AsyncClient, method: str, url: str, headers: Mapping[str, str], body: _Body | None
) -> httpx.Response:
    own = {} if body is None else {"Content-Length": str(body.length), "Content-Type": "application/json"}
    merged = {**{k: v for k, v in own.items() if k.lower() not in _lower(headers)}, **headers}
    return await client.request(method, url, headers=merged, content=body)


def _judge(response: httpx.Response, task_id: str) -> None:
    if response.status_code < 400:
        return
    code = response.status_code
    raise DeliveryError(
        f"HTTP delivery for task {task_id} returned status {code}: {response.text[:_SHOWN]}",
        retryable=code >= 500 or code in _WORTH_A_RETRY,
    )


def _lower(names: Iterable[str]) -> set[str]:
    return {n.lower() for n in names}


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
