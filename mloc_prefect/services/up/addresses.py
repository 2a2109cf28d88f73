"""Ports that are free, and the names by which other machines reach this one."""

from __future__ import annotations

import errno
import socket

from mloc_prefect.errors import DispatchError
from mloc_prefect.process.exposure import in_url, is_wildcard
from mloc_prefect.process.free_port import is_free, listen, ports_from

_PORTS_TRIED = 50


def name_for_others(host: str) -> str:
    """Return the name by which other machines reach what listens on `host`, in the form that URLs want."""
    if is_wildcard(host):
        return socket.gethostname()
    return in_url(host)


def free_port(wanted: int, *hosts: str) -> int:
    """Return `wanted` if nothing listens there on any of `hosts`, else the next port for which that is so.

    Raises:
        DispatchError: A host is no address of this machine, or no such port is near.
    """
    for port in ports_from(wanted, _PORTS_TRIED):
        if all(_is_free(host, port) for host in hosts):
            return port
    raise DispatchError(f"no port from {wanted} to {wanted + _PORTS_TRIED - 1} is free", hint="end old programs there")


def required_port(port: int, host: str) -> int:
    """Return `port` if nothing listens there (any free one for 0).

    Raises:
        DispatchError: Something does, or `host` is no address of this machine.
    """
    try:
        with listen(host, port) as sock:
            return int(sock.getsockname()[1])
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise _cannot_listen(host, error) from None
        raise DispatchError(
            f"port {port} of {host} is in use by another program",
            hint="end that program, or take another port: `--port 8001`, or PORT=8001",
        ) from None


def _is_free(host: str, port: int) -> bool:
    try:
        return is_free(host, port)
    except OSError as error:
        raise _cannot_listen(host, error) from None


def _cannot_listen(host: str, error: OSError) -> DispatchError:
    reason = error.strerror or str(error)
    return DispatchError(
        f"cannot listen on {host}: {reason}", hint="name an address of this machine, or 0.0.0.0 for all of them"
    )
