"""HTTP clients of agents: every request passes the rules of `artifacts.transfer.outgoing`, and bodies are bounded.

Bodies are asked for as they are: a compressed one of some kilobytes can become gigabytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

from mloc_prefect.artifacts.transfer.outgoing import DeliveryError, shown_url
from mloc_prefect.artifacts.transfer.pinned_transport import PinnedTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts
    from mloc_prefect.artifacts.transfer.pinned_connection import Address

_REDIRECTS = 5


class BodyLimitError(httpx.TransportError):
    """A server sends more than is read of it."""


def guarded_client(*rules: AllowedHosts, most_bytes: int, timeout: float, redirects: bool = False) -> httpx.AsyncClient:
    """Return a client that calls allowed hosts only, redirects included.

    Args:
        rules: What allows a host; each of them must.
        most_bytes: Bytes of one body.
        timeout: Seconds without a byte.
        redirects: Whether redirects are followed.
    """

    async def check(request: httpx.Request) -> None:
        for allowed in rules:
            allowed.check(str(request.url))

    async def bound(response: httpx.Response) -> None:
        coding = response.headers.get("content-encoding", "identity").strip().lower()
        if coding not in {"", "identity"}:
            where = shown_url(str(response.url))
            raise DeliveryError(f"{where} sends Content-Encoding {coding[:40]!a}, which was not asked for")
        if isinstance(response.stream, httpx.AsyncByteStream):
            response.stream = _BoundedBody(response.stream, most_bytes, str(response.url))

    def look_up(url: str) -> list[Address]:
        for allowed in rules[:-1]:
            allowed.check(url)
        return rules[-1].addresses(url)

    return httpx.AsyncClient(
        transport=PinnedTransport(look_up),
        headers={"Accept-Encoding": "identity"},
        event_hooks={"request": [check], "response": [bound]},
        follow_redirects=redirects,
        max_redirects=_REDIRECTS,
        timeout=timeout,
    )


class _BoundedBody(httpx.AsyncByteStream):
    """The body of a response, up to a number of bytes as they are sent."""

    def __init__(self, body: httpx.AsyncByteStream, most: int, url: str) -> None:
        self._body = body
        self._most = most
        self._url = url

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        async for chunk in self._body:
            read += len(chunk)
            if read > self._most:
                raise BodyLimitError(f"{shown_url(self._url)} sends more than {self._most} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._body.aclose()


def refusal_of(error: BaseException) -> str | None:
    """Return why the rules refused a request, None for any other error; libraries wrap such errors."""
    cause: Any = error
    while cause is not None:
        if isinstance(cause, DeliveryError):
            return cause.message
        cause = cause.__cause__ or cause.__context__
    return None
