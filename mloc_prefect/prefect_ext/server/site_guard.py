"""Refuses requests of web pages that are not the server's own, and requests for names that are not its own.

A page that the operator opens can reach addresses that only this machine reaches, and a name of that page's site may
come to stand for such an address. Prefect itself answers to any name and to pages of any origin. The login is asked for
in addition: what this guards is that it is not even tried.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mloc_prefect.process.exposure import is_loopback, is_wildcard

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import ASGIApp, Receive, Scope, Send

_FORBIDDEN = 403


class SiteGuard:
    """An ASGI application around another one; it judges requests and websockets.

    Args:
        app: The application.
        host: Address that the server listens on.
        names: Further names of the server.
    """

    def __init__(self, app: ASGIApp, host: str, names: Iterable[str] = ()) -> None:
        self._app = app
        self._only_loopback = is_loopback(host)
        own = {host, *names} if self._only_loopback else {host, *names, socket.gethostname()}
        self._names = frozenset(name.lower().strip("[]").rstrip(".") for name in own if not is_wildcard(name))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is judged right, refuse the rest with 403."""
        problem = self._problem(scope) if scope["type"] in {"http", "websocket"} else None
        if problem is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()  # its connect message comes first
            await send({"type": "websocket.close", "code": 1008, "reason": problem})
        else:
            body = json.dumps({"exception_message": problem}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": _FORBIDDEN, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    def _problem(self, scope: Scope) -> str | None:
        hosts, origins = _values(scope, b"host"), _values(scope, b"origin")
        if len(hosts) != 1 or not self._is_own(_name_of(hosts[0])):
            return "this server does not answer to that host name; MLOC_BASE_URL may name another one"
        if any(origin.partition("://")[2] != hosts[0] for origin in origins):
            return "pages of other sites may not use this server"
        return None

    def _is_own(self, name: str | None) -> bool:
        if name is None:
            return False
        if is_loopback(name) or name in self._names:
            return True
        return not self._only_loopback and _is_address(name)  # no page of another site has an address of ours


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _name_of(host: str) -> str | None:
    """Return the name in a `Host` header, or None when it is no name and port."""
    try:
        parts = urlsplit(f"//{host}")
        parts.port  # noqa: B018 - is checked when it is read
    except ValueError:
        return None
    if parts.netloc != host or parts.username is not None or not parts.hostname:
        return None
    return parts.hostname.rstrip(".")


def _is_address(name: str) -> bool:
    try:
        return not ipaddress.ip_address(name).is_unspecified
    except ValueError:
        return False
