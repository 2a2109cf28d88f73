"""`PinnedTransport` and `PinnedSyncTransport`: what `pinned_connection` is for `urllib`, for `httpx`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx

from mloc_prefect.process.proxies import proxy_url

if TYPE_CHECKING:
    from mloc_prefect.artifacts.transfer.pinned_connection import Address, LookUp


class PinnedTransport(httpx.AsyncBaseTransport):
    """Sends requests to the addresses that `look_up` returns for their URLs, or through the proxy of the environment.

    A client with a transport of its own does not read the proxies of the environment, so this does.
    """

    def __init__(self, look_up: LookUp) -> None:
        self._look_up = look_up
        self._kept: dict[str, httpx.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request.

        Raises:
            httpx.HTTPError: No address answers.
            DeliveryError: The URL may not be called.
        """
        proxy = proxy_url(str(request.url))
        if proxy is not None:
            return await self._kept_for(f"proxy {proxy}", proxy).handle_async_request(request)
        problem: httpx.TransportError = httpx.ConnectError("the host has no address", request=request)
        addresses = await self._addresses(request)
        # One for each origin: connections are kept by address, and the names of two hosts may have the same.
        direct = self._kept_for(_origin(request))
        for address in addresses:
            try:
                return await direct.handle_async_request(_pinned(request, str(address[4][0])))
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                problem = error
        raise problem

    async def aclose(self) -> None:
        """Close all connections."""
        for transport in self._kept.values():
            await transport.aclose()

    def _kept_for(self, key: str, proxy: str | None = None) -> httpx.AsyncHTTPTransport:
        # Made once, and only when it is needed: it reads the certificates of all authorities.
        return self._kept.get(key) or self._kept.setdefault(key, httpx.AsyncHTTPTransport(proxy=proxy))

    async def _addresses(self, request: httpx.Request) -> list[Address]:
        limit = request.extensions.get("timeout", {}).get("connect")
        try:
            return list(await asyncio.wait_for(asyncio.to_thread(self._look_up, str(request.url)), limit))
        except TimeoutError:
            raise httpx.ConnectTimeout("the name server does not answer", request=request) from None
        except OSError as error:
            raise httpx.ConnectError(str(error), request=request) from error


class PinnedSyncTransport(httpx.BaseTransport):
    """`PinnedTransport` for clients that are not asynchronous."""

    def __init__(self, look_up: LookUp) -> None:
        self._look_up = look_up
        self._kept: dict[str, httpx.HTTPTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request.

        Raises:
            httpx.HTTPError: No address answers.
            DeliveryError: The URL may not be called.
        """
        proxy = proxy_url(str(request.url))
        if proxy is not None:
            return self._kept_for(f"proxy {proxy}", proxy).handle_request(request)
        problem: httpx.TransportError = httpx.ConnectError("the host has no address", request=request)
        try:
            addresses = self._look_up(str(request.url))
        except OSError as error:
            raise httpx.ConnectError(str(error), request=request) from error
        direct = self._kept_for(_origin(request))
        for address in addresses:
            try:
                return direct.handle_request(_pinned(request, str(address[4][0])))
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                problem = error
        raise problem

    def close(self) -> None:
        """Close all connections."""
        for transport in self._kept.values():
            transport.close()

    def _kept_for(self, key: str, proxy: str | None = None) -> httpx.HTTPTransport:
        # Made once, and only when it is needed: it reads the certificates of all authorities.
        return self._kept.get(key) or self._kept.setdefault(key, httpx.HTTPTransport(proxy=proxy))


def _origin(request: httpx.Request) -> str:
    return f"{request.url.scheme}://{request.url.netloc.decode('ascii')}"


def _pinned(request: httpx.Request, address: str) -> httpx.Request:
    """Return the request with an address as its host; the header `Host` and the name for TLS stay those of the URL."""
    name = request.url.raw_host.decode("ascii")
    url = request.url.copy_with(host=address.partition("%")[0])
    extensions = {**request.extensions, "sni_hostname": name}
    return httpx.Request(request.method, url, headers=request.headers, stream=request.stream, extensions=extensions)
