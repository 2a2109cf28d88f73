"""Sends a finished result to the http destination of its spec. [protocol 4.8]."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts.transfer.outgoing import (
    DeliveryError,
    is_temporary,
    ready_url,
    redirected,
    sendable_headers,
    shown_url,
)
from mloc_prefect.errors import reason
from mloc_prefect.process.backoff import retry_after
from mloc_prefect.process.proxies import proxy_problem, through

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from pathlib import Path

    import httpx

    from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts

_METHODS = frozenset({"POST", "PUT"})  # others would let a spec delete or change what is not its own
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 5
_SHOWN = 200  # characters of an answer in an error text, as in MLOC
_CHUNK = 1 << 18
STAGE_RUN = "X-MLOC-Stage-Run"
"""Header with the flow run of the stage whose runner sends the result."""


@dataclass(frozen=True, slots=True)
class HttpDestination:
    """`spec.output.destination` of type http; its headers are never shown.

    Attributes:
        url: URL of the destination.
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
        """Parse the http destination in `output.destination`; None when it has another type.

        Raises:
            DeliveryError: Type http without a url, a timeout that is not a number, another method than POST and PUT,
                or a header that HTTP cannot carry; values of headers are not shown.
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
        if method not in _METHODS:
            raise DeliveryError(
                f"spec.output.destination.method {method!r} is not allowed: a result is sent with POST or PUT",
                retryable=False,
            )
        return cls(
            url, method, sendable_headers(destination.get("headers"), "spec.output.destination.headers"), seconds
        )

    def check(self, allowed: AllowedHosts) -> None:
        """Refuse a URL whose host is not allowed.

        Raises:
            DeliveryError: The host is not allowed; the hint says how to allow it.
        """
        allowed.check(self.url)


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
    """Send `{"task_id", "result", "worker_id"}` with the JSON of the file `result`, or only that file, streamed.

    Redirects are followed with the same method and body (303: with GET and no body) under the rules of `outgoing`.

    Args:
        destination: The destination.
        task_id: Id of the task.
        result: File with the result object as JSON.
        worker_id: The worker that ran the task, or None.
        allowed: Hosts that may be called.
        stage_run: Flow run of the stage that sends it, for the header `STAGE_RUN`; not sent to another origin.
        envelope: Send only the file: it has the result of a sharded task in its envelope. [protocol 2.7].
        transport: Replaces the network in tests.

    Raises:
        DeliveryError: The URL is refused or unreachable, or answers with status >= 400.
    """
    import httpx

    from mloc_prefect.artifacts.transfer.pinned_transport import PinnedTransport

    ready = ready_url(destination.url)
    url, method, bare = ready.url, destination.method, False
    headers: Mapping[str, str] = {**ready.headers, **destination.headers}
    if stage_run is not None:
        headers = {**headers, STAGE_RUN: stage_run}
    allowed.check(url)
    if (problem := proxy_problem(url)) is not None:
        raise DeliveryError(f"Failed to deliver task {task_id} result to {shown_url(url)}: {problem}")
    try:
        sender = transport or PinnedTransport(allowed.addresses)
        async with httpx.AsyncClient(timeout=destination.timeout, follow_redirects=False, transport=sender) as client:
            for _ in range(_MOST_REDIRECTS + 1):
                body = None if bare else _Body(result) if envelope else _Body.around(task_id, result, worker_id)
                response = await _send(client, method, url, headers, body)
                if response.status_code not in _REDIRECTS or "location" not in response.headers:
                    _raise_for_status(response, task_id)
                    return
                url, headers = redirected(url, response.headers["location"], headers, allowed)
                bare = bare or response.status_code == 303
                method = "GET" if bare else method
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
        hopeless = isinstance(error, (httpx.InvalidURL, httpx.LocalProtocolError, httpx.UnsupportedProtocol))
        raise DeliveryError(
            f"Failed to deliver task {task_id} result to {shown_url(url)}{through(url)}: {reason(error)}",
            retryable=not hopeless,
        ) from error
    text = f"more than {_MOST_REDIRECTS} redirects"
    raise DeliveryError(
        f"Failed to deliver task {task_id} result to {shown_url(destination.url)}: {text}", retryable=False
    )


class _Body:
    """The request body, read from the file while it is sent, so that a large result needs no memory."""

    def __init__(self, file: Path, head: bytes = b"", tail: bytes = b"") -> None:
        self.head, self.file, self.tail = head, file, tail
        self.length = len(head) + file.stat().st_size + len(tail)

    @classmethod
    def around(cls, task_id: str, result: Path, worker_id: str | None) -> _Body:
        """Return the message that contains a result object."""
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


def _raise_for_status(response: httpx.Response, task_id: str) -> None:
    if response.status_code < 400:
        return
    code = response.status_code
    raise DeliveryError(
        f"HTTP delivery for task {task_id} returned status {code}: {response.text[:_SHOWN]}",
        retryable=is_temporary(code),
        asked_to_wait=retry_after(response.headers.get("Retry-After")),
    )


def _lower(names: Iterable[str]) -> set[str]:
    return {n.lower() for n in names}
