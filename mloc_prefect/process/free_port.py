"""TCP ports: sockets that listen, and ports that nothing listens on. Standard library only."""

from __future__ import annotations

import errno
import socket

_BACKLOG = 2048
_IN_USE = frozenset({errno.EADDRINUSE, errno.EACCES})  # EACCES: the system keeps the port to itself


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on `port` of `host`; port 0 is any free one.

    The socket is bound *and* listening before the caller publishes its port: no other process can take it meanwhile.

    Args:
        host: Address or name.
        port: The port.

    Raises:
        OSError: The port is in use, or `host` is no address of this machine.
    """
    # The protocol is named: asyncio turns Nagle's delay off (TCP_NODELAY) only where it is, 0 is not enough.
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def listen_near(host: str, wanted: int, *, tried: int) -> socket.socket:
    """Return a socket that listens on `wanted`, else on one of the next ports, else on any free one.

    Args:
        host: Address or name.
        wanted: The first port to try.
        tried: How many ports from `wanted` on are tried.

    Raises:
        OSError: No port is free, or `host` is no address of this machine.
    """
    for port in ports_from(wanted, tried):
        try:
            return listen(host, port)
        except OSError as error:
            if error.errno not in _IN_USE:
                raise
    return listen(host, 0)


def is_free(host: str, port: int) -> bool:
    """Return whether nothing listens on `port` of `host`.

    Raises:
        OSError: `host` is no address of this machine.
    """
    try:
        listen(host, port).close()
    except OSError as error:
        if error.errno not in _IN_USE:
            raise
        return False
    return True


def ports_from(wanted: int, count: int) -> range:
    """Return `wanted` and the ports that follow it, `count` in all where there are so many."""
    return range(wanted, min(wanted + count, 65536))
