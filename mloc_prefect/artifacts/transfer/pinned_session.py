"""What `pinned_connection` is for `urllib`, for `aiohttp`, with which fsspec reads folders at http URLs."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from mloc_prefect.process.exposure import in_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts


def pinned_sessions(allowed: AllowedHosts) -> Callable[..., Awaitable[Any]]:
    """Return what makes the sessions of an fsspec file system: they call allowed hosts only, redirects included."""

    async def session(**options: Any) -> Any:
        import aiohttp

        class Resolver(aiohttp.abc.AbstractResolver):  # type: ignore[misc]  # not known to mypy here
            async def resolve(self, host: str, port: int = 0, family: int = socket.AF_INET) -> list[Any]:
                url = f"http://{in_url(host)}:{port}/"
                rows = await asyncio.to_thread(allowed.addresses, url)
                return [
                    {
                        "hostname": host,
                        "host": str(row[4][0]),
                        "port": port,
                        "family": row[0],
                        "proto": row[2],
                        "flags": socket.AI_NUMERICHOST,
                    }
                    for row in rows
                    if family in (row[0], socket.AF_UNSPEC)
                ]

            async def close(self) -> None:
                """Nothing is kept."""

        async def begun(_session: Any, _context: Any, params: Any) -> None:
            await asyncio.to_thread(allowed.check, str(params.url))

        async def redirected(_session: Any, _context: Any, params: Any) -> None:
            headers = params.response.headers
            target = urljoin(str(params.url), headers.get("Location") or headers.get("URI") or "")
            await asyncio.to_thread(allowed.check, target)

        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(begun)
        trace.on_request_redirect.append(redirected)
        connector = aiohttp.TCPConnector(resolver=Resolver())
        return aiohttp.ClientSession(connector=connector, trace_configs=[trace], **options)

    return session
