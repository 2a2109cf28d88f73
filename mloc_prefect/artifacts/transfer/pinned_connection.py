"""Connections of `urllib` to addresses that were judged: a host is looked up once, and no second answer counts.

A name server may answer a check with one address and the connection after it with another (DNS rebinding). So the
answer that is judged is the one that is connected to. A request that goes through a proxy is connected to the proxy,
which the operator chose and which looks up hosts by itself.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import urllib.request
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

Address = tuple[Any, ...]
"""A row of `socket.getaddrinfo`."""

LookUp = Callable[[str], Sequence[Address]]
"""Returns the addresses at which a URL may be called; raises if it may not."""


class PinnedHandler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens http and https URLs at the addresses that `look_up` returns for them."""

    def __init__(self, look_up: LookUp) -> None:
        super().__init__()
        self._look_up = look_up

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Open an http URL."""
        return self._open(_PinnedConnection, req) if _is_direct(req) else super().http_open(req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Open an https URL."""
        return self._open(_PinnedTlsConnection, req) if _is_direct(req) else super().https_open(req)

    def _open(self, kind: type[_PinnedConnection], req: urllib.request.Request) -> http.client.HTTPResponse:
        addresses = self._look_up(req.full_url)
        return self.do_open(partial(kind, addresses=addresses), req)


class _PinnedConnection(http.client.HTTPConnection):
    def __init__(self, host: str, *, addresses: Sequence[Address], timeout: Any) -> None:
        super().__init__(host, timeout=timeout)
        self._addresses = addresses

    def connect(self) -> None:
        """Connect to the first address that answers."""
        self.sock = _connected(self._addresses, self.timeout)


class _PinnedTlsConnection(_PinnedConnection):
    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        """Connect, and check the certificate for the name of the host."""
        super().connect()
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        self.sock = context.wrap_socket(self.sock, server_hostname=self.host)


def _is_direct(req: urllib.request.Request) -> bool:
    """Return whether no proxy is between us and the host; with one, the request has the proxy as its host."""
    return req.host == urlsplit(req.full_url).netloc


def _connected(addresses: Sequence[Address], timeout: float | None) -> socket.socket:
    problem: OSError = OSError("the host has no address")
    for family, kind, protocol, _, address in addresses:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(timeout)
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            problem = error
            sock.close()
        else:
            return sock
    raise problem
