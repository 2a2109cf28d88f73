"""Open connections of the endpoint: time for headers and bodies, and how many there may be.

A server that waits without end for the rest of a request can be stopped by a few hundred half-sent ones. Here each
unfinished request has its time, and where there are too many connections, the unfinished request that has been silent
longest makes room for the next one, first those of the peer with the most connections.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.settings import MlocSettings

_log = logging.getLogger(__name__)

_OWN_FILES = 128  # descriptors for files, logs, Redis and the listening socket
_LARGEST_HEADER = 64 * 1024  # bytes of an unfinished header, as in other servers
_LEAST_IN_WINDOW = 1024  # bytes of a body; a slower sender is closed
_SWEEP_SECONDS = 1.0
_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class ConnectionPhase(Enum):
    """What a connection is waiting for."""

    HEADER = "header"
    """The header of the next request; a kept connection between two requests, too."""
    BODY = "body"
    """The rest of a body."""
    ANSWER = "answer"
    """Its answer: nothing is expected of the client."""


class GuardedTransport(Protocol):
    """A connection as the guard sees it."""

    @property
    def held_back(self) -> bool:
        """Whether the endpoint itself has stopped reading from it."""
        ...

    def close_now(self, last_words: bytes) -> None:
        """Send `last_words` if that does not have to wait, and close the connection."""
        ...


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of connections.

    Attributes:
        header_seconds: From the first byte of a request, or from the connection, to the end of its header.
        body_seconds: Window in which a body must bring some data.
        of_peer: Most connections of one address.
        total: Most connections of all.
        backlog: Most connections that the system accepts for us at once.
    """

    header_seconds: float
    body_seconds: float
    of_peer: int
    total: int
    backlog: int

    @classmethod
    def of(cls, settings: MlocSettings, files: int) -> ConnectionLimits:
        """Return the limits for a process that may have `files` open files."""
        backlog = max(16, min(2048, files // 4))
        total = max(16, files - backlog - _OWN_FILES)
        peer = min(settings.connections_per_peer, max(8, total // 2))
        return cls(settings.header_seconds, settings.body_seconds, peer, total, backlog)


@dataclass(slots=True, eq=False)
class OpenConnection:
    """One connection.

    Attributes:
        peer: Address of the client.
        protocol: The connection itself; None once it is closed.
        phase: What it waits for.
        since: Start of the header or of the present window of the body; None: nothing of a next request has come.
        received: Bytes since then.
    """

    peer: str
    protocol: GuardedTransport | None
    phase: ConnectionPhase = ConnectionPhase.HEADER
    since: float | None = None
    received: int = 0


@dataclass(eq=False)
class ConnectionGuard:
    """Counts open connections, closes late ones, and makes room for new ones.

    Attributes:
        limits: The limits.
        clock: A monotonic clock, in seconds.
    """

    limits: ConnectionLimits
    clock: Callable[[], float] = time.monotonic
    _open: Counter[str] = field(default_factory=Counter)
    # Those that wait for their client, the longest silent first.
    _unfinished: OrderedDict[OpenConnection, None] = field(default_factory=OrderedDict)
    _of_peer: dict[str, OrderedDict[OpenConnection, None]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of open connections."""
        return self._open.total()

    def opened(self, peer: str, protocol: GuardedTransport) -> OpenConnection | None:
        """Register a new connection; None if there is no room for it: every other one is being answered."""
        while self._open[peer] >= self.limits.of_peer:
            if not self._make_room(peer):
                return None
        while self.total >= self.limits.total:
            if not any(self._make_room(name) for name, _ in self._open.most_common()):
                return None
        connection = OpenConnection(peer, protocol, since=self.clock())
        self._open[peer] += 1
        self._wait(connection)
        return connection

    def closed(self, connection: OpenConnection) -> None:
        """Forget a connection; nothing happens if it was closed here."""
        if connection.protocol is None:
            return
        connection.protocol = None
        self._finish(connection)
        self._open[connection.peer] -= 1
        if self._open[connection.peer] <= 0:
            del self._open[connection.peer]

    def changed(self, connection: OpenConnection, phase: ConnectionPhase, size: int) -> None:
        """Note that `size` bytes have come, and what the connection waits for now."""
        if connection.protocol is None:
            return
        if phase is not connection.phase:
            began = self.clock() if phase is ConnectionPhase.BODY else None
            connection.phase, connection.since, connection.received = phase, began, 0
        elif size:
            if connection.since is None and phase is ConnectionPhase.HEADER:
                connection.since = self.clock()
            connection.received += size
        if phase is ConnectionPhase.ANSWER:
            self._finish(connection)
        else:
            self._wait(connection)
            if phase is ConnectionPhase.HEADER and connection.received > _LARGEST_HEADER:
                self._close(connection, _LARGE)

    def sweep(self) -> None:
        """Close the connections whose time is over."""
        now = self.clock()
        for connection in list(self._unfinished):
            if connection.since is None:
                continue  # between two requests: the server closes it
            if connection.phase is ConnectionPhase.HEADER:
                if now - connection.since >= self.limits.header_seconds:
                    self._close(connection, _LATE)
            elif now - connection.since >= self.limits.body_seconds:
                held_back = connection.protocol is not None and connection.protocol.held_back
                if connection.received < _LEAST_IN_WINDOW and not held_back:
                    self._close(connection, b"")
                connection.since, connection.received = now, 0

    async def sweep_regularly(self) -> None:
        """Run `sweep` every second until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self.sweep()

    def _wait(self, connection: OpenConnection) -> None:
        for waiting in (self._unfinished, self._of_peer.setdefault(connection.peer, OrderedDict())):
            waiting[connection] = None
            waiting.move_to_end(connection)

    def _finish(self, connection: OpenConnection) -> None:
        self._unfinished.pop(connection, None)
        waiting = self._of_peer.get(connection.peer)
        if waiting is not None:
            waiting.pop(connection, None)
            if not waiting:
                del self._of_peer[connection.peer]

    def _make_room(self, peer: str) -> bool:
        """Close the longest silent unfinished connection of a peer; return False if it has none."""
        oldest = next(iter(self._of_peer.get(peer, ())), None)
        if oldest is None:
            return False
        self._close(oldest, b"")
        return True

    def _close(self, connection: OpenConnection, last_words: bytes) -> None:
        protocol = connection.protocol
        self.closed(connection)
        if protocol is not None:
            protocol.close_now(last_words)


class _GuardedProtocol(asyncio.Protocol):
    """What is added to uvicorn's protocol: it reports to the guard what its connection waits for."""

    guard: ConnectionGuard
    opened: OpenConnection | None = None
    transport: asyncio.Transport
    client: tuple[str, int] | None
    cycle: Any
    flow: Any

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.opened = self.guard.opened(self.client[0] if self.client else "", self)
        if self.opened is None:
            self.close_now(_FULL)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.opened is not None:
            self.guard.closed(self.opened)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._report(len(data))

    def on_response_complete(self) -> None:
        super().on_response_complete()  # type: ignore[misc]  # uvicorn's protocol has it
        self._report(0)

    @property
    def held_back(self) -> bool:
        return bool(self.flow.read_paused)

    def close_now(self, last_words: bytes) -> None:
        if last_words and not self.transport.is_closing():
            self.transport.write(last_words)
            self.transport.close()
        else:
            self.transport.abort()

    def _report(self, size: int) -> None:
        if self.opened is not None:
            self.guard.changed(self.opened, self._phase(), size)

    def _phase(self) -> ConnectionPhase:
        cycle = self.cycle
        if cycle is None or (cycle.response_complete and not cycle.more_body):
            return ConnectionPhase.HEADER
        return ConnectionPhase.BODY if cycle.more_body else ConnectionPhase.ANSWER


def guarded_protocol(guard: ConnectionGuard) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol for HTTP with a guard."""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    return type("GuardedProtocol", (_GuardedProtocol, AutoHTTPProtocol), {"guard": guard})


def raise_file_limit() -> int:
    """Let this process open as many files as the system allows it; return that number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError) as error:  # some systems have a lower limit of their own
            _log.info("at most %d open files: %s", soft, error)
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return soft if soft != resource.RLIM_INFINITY else 1 << 20
