"""Readiness of a long-running command: the protocol of systemd's `Type=notify`, over a datagram socket."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

VARIABLE = "NOTIFY_SOCKET"


def report_ready() -> None:
    """Notify the starter of this process that it is ready; without `NOTIFY_SOCKET` there is none to notify."""
    address = os.environ.get(VARIABLE)
    if not address:
        return
    if address.startswith("@"):  # Linux's abstract name space
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect(address)
            sock.send(b"READY=1")
        except OSError:  # the starter has ended, or does not listen
            return


class ReadySocket:
    """The starter's end: a socket that hears of readiness. Bound to the running event loop.

    Args:
        path: Where the socket is put; goes into the child's `NOTIFY_SOCKET`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ready = asyncio.Event()
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._socket.bind(str(path))
            path.chmod(0o600)
        except OSError:
            self._socket.close()
            raise
        asyncio.get_running_loop().add_reader(self._socket, self._receive)

    def close(self) -> None:
        """Stop listening."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def _receive(self) -> None:
        if b"READY=1" in self._socket.recv(4096).split(b"\n"):
            self.ready.set()
