"""Where the endpoint listens, and whether it may. [architecture, "Outgoing URLs"]."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

from mloc_prefect.errors import DispatchError

if TYPE_CHECKING:
    from mloc_prefect.settings import MlocSettings

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"  # noqa: S104 - only with a token, see `address`
_BACKLOG = 2048


def address(settings: MlocSettings) -> str:
    """Return the address to listen on: the one asked for, else all with a token and loopback without.

    Raises:
        DispatchError: It lies beyond loopback, and there is no token.
    """
    token = settings.token is not None and bool(settings.token.get_secret_value())
    host = settings.host or (EVERYWHERE if token else LOOPBACK)
    if not token and not is_loopback(host):
        raise DispatchError(
            f"the endpoint would listen on {host}, where other machines reach it, without a token",
            hint="set ORCHESTRATOR_TOKEN, or leave out --host (MLOC_HOST) to listen on this machine only",
        )
    return host


def is_loopback(host: str) -> bool:
    """Return whether an address, or `localhost`, is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


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
