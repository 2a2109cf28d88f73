"""Where the endpoint listens, and whether it may. [architecture, "Outgoing URLs"]."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from mloc_prefect.bridge.exposure import EVERYWHERE, LOOPBACK, is_loopback, refuse_open_redis
from mloc_prefect.errors import DispatchError

if TYPE_CHECKING:
    from mloc_prefect.settings import MlocSettings

_BACKLOG = 2048


def address(settings: MlocSettings) -> str:
    """Return the address to listen on: the one asked for, else all with a token and loopback without.

    Raises:
        DispatchError: It lies beyond loopback, and there is no token, or Redis stands open beside it.
    """
    token = settings.token is not None and bool(settings.token.get_secret_value())
    host = settings.host or (EVERYWHERE if token else LOOPBACK)
    if not token and not is_loopback(host):
        raise DispatchError(
            f"the endpoint would listen on {host}, where other machines reach it, without a token",
            hint="set ORCHESTRATOR_TOKEN, or leave out --host (MLOC_HOST) to listen on this machine only",
        )
    if not is_loopback(host) and settings.redis_url is not None:
        refuse_open_redis(
            host,
            settings.redis_url.get_secret_value(),
            otherwise=f"listen on this machine only with --host {LOOPBACK} (MLOC_HOST)",
        )
    return host


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: Address or name.
        port: Port; 0 = any free one.

    Raises:
        DispatchError: The address is not ours, or the port is in use.
    """
    try:
        family, kind, proto, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise DispatchError(
            f"the endpoint cannot listen on {host}:{port}: {error.strerror or error}",
            hint="choose another port with PORT or --port",
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL by which this machine reaches a listening socket."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)  # noqa: S104 - shown as loopback
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
