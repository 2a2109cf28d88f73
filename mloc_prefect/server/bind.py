"""The address that the endpoint listens on, and whether that is allowed. [decisions: Outgoing URLs]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mloc_prefect.errors import DispatchError
from mloc_prefect.process.exposure import EVERYWHERE, LOOPBACK, is_loopback, refuse_open_redis
from mloc_prefect.process.free_port import listen

if TYPE_CHECKING:
    import socket

    from mloc_prefect.settings import MlocSettings


def address(settings: MlocSettings) -> str:
    """Return the address to listen on: the configured one, otherwise all with a token and loopback without.

    Raises:
        DispatchError: The address is beyond loopback, and there is no token, or Redis is open without a password.
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
    """Return a listening socket.

    Args:
        host: Address or name.
        port: Port; 0 = any free one.

    Raises:
        DispatchError: The address does not belong to this machine, or the port is in use.
    """
    try:
        return listen(host, port)
    except OSError as error:
        raise DispatchError(
            f"the endpoint cannot listen on {host}:{port}: {error.strerror or error}",
            hint="choose another port with PORT or --port",
        ) from error


def url_of(listener: socket.socket) -> str:
    """Return the URL at which this machine reaches a listening socket."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)  # noqa: S104 - shown as loopback
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
