"""Open connections: late requests end, and new ones find room where unfinished ones stand."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.server.connections import (
    ConnectionGuard,
    ConnectionLimits,
    ConnectionPhase,
    OpenConnection,
    guarded_protocol,
)
from mloc_prefect.settings import get_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HEADER, BODY, ANSWER = ConnectionPhase.HEADER, ConnectionPhase.BODY, ConnectionPhase.ANSWER


@dataclass
class Peer:
    """A connection that notes how it was closed."""

    held_back: bool = False
    words: list[bytes] = field(default_factory=list)

    def close_now(self, last_words: bytes) -> None:
        self.words.append(last_words)


@dataclass
class Site:
    """A guard with a clock that a test moves."""

    of_peer: int = 4
    total: int = 6
    now: float = 0.0
    guard: ConnectionGuard = field(init=False)

    def __post_init__(self) -> None:
        limits = ConnectionLimits(
            header_seconds=10, body_seconds=30, of_peer=self.of_peer, total=self.total, backlog=16
        )
        self.guard = ConnectionGuard(limits, clock=lambda: self.now)

    def connect(self, address: str = "a") -> tuple[Peer, OpenConnection]:
        """Open a connection that is accepted."""
        peer = Peer()
        opened = self.guard.opened(address, peer)
        assert opened is not None
        return peer, opened

    def after(self, seconds: float) -> None:
        """Let time pass, and sweep."""
        self.now += seconds
        self.guard.sweep()


def test_a_header_has_its_time_however_slowly_it_arrives() -> None:
    site = Site()
    peer, opened = site.connect()
    for _ in range(9):
        site.after(1)
        site.guard.changed(opened, HEADER, 1)
    assert peer.words == []
    site.after(1)
    assert peer.words[0].startswith(b"HTTP/1.1 408")
    assert site.guard.total == 0


def test_a_connection_that_sends_nothing_ends_too() -> None:
    site = Site()
    peer, _ = site.connect()
    site.after(10)
    assert peer.words


def test_an_answer_has_no_limit_and_a_kept_connection_waits_for_its_next_request() -> None:
    site = Site()
    peer, opened = site.connect()
    site.guard.changed(opened, ANSWER, 50)
    site.after(1000)
    site.guard.changed(opened, HEADER, 0)
    site.after(1000)
    assert peer.words == []
    site.guard.changed(opened, HEADER, 1)
    site.after(10)
    assert peer.words[0].startswith(b"HTTP/1.1 408")


def test_a_body_must_go_on() -> None:
    site = Site()
    peer, opened = site.connect()
    site.guard.changed(opened, BODY, 100)
    site.guard.changed(opened, BODY, 2000)
    site.after(30)
    assert peer.words == []
    site.guard.changed(opened, BODY, 10)
    site.after(30)
    assert peer.words == [b""]


def test_a_body_that_the_endpoint_does_not_read_is_not_late() -> None:
    site = Site()
    peer, opened = site.connect()
    site.guard.changed(opened, BODY, 100)
    peer.held_back = True
    site.after(300)
    assert peer.words == []


def test_an_unfinished_header_has_a_largest_size() -> None:
    site = Site()
    peer, opened = site.connect()
    site.guard.changed(opened, HEADER, 60_000)
    assert peer.words == []
    site.guard.changed(opened, HEADER, 60_000)
    assert peer.words[0].startswith(b"HTTP/1.1 431")


def test_a_peer_with_too_many_connections_loses_the_longest_silent_one() -> None:
    site = Site()
    peers = [site.connect() for _ in range(4)]
    site.guard.changed(peers[0][1], BODY, 1)
    site.connect()
    assert [bool(peer.words) for peer, _ in peers] == [False, True, False, False]
    assert site.guard.total == 4


def test_answers_are_never_given_up_for_a_new_connection() -> None:
    site = Site()
    peers = [site.connect() for _ in range(4)]
    for _, opened in peers:
        site.guard.changed(opened, ANSWER, 1)
    assert site.guard.opened("a", Peer()) is None
    assert not any(peer.words for peer, _ in peers)
    site.connect("b")
    site.guard.closed(peers[0][1])
    site.connect("a")


def test_the_peer_with_the_most_connections_makes_room_for_others() -> None:
    site = Site()
    crowd = [site.connect("crowd") for _ in range(4)]
    lonely, other = site.connect("lonely"), site.connect("other")
    site.connect("new")
    assert [bool(peer.words) for peer, _ in crowd] == [True, False, False, False]
    assert lonely[0].words == other[0].words == []
    assert site.guard.total == 6


def test_what_is_closed_twice_counts_once() -> None:
    site = Site()
    _, opened = site.connect()
    site.connect()
    site.guard.closed(opened)
    site.guard.closed(opened)
    site.guard.changed(opened, HEADER, 5)
    assert site.guard.total == 1


def test_limits_follow_from_the_open_files_that_are_allowed(tmp_path: Path) -> None:
    settings = get_settings(home=tmp_path)
    few = ConnectionLimits.of(settings, 1024)
    assert few.total + few.backlog < 1024
    assert few.of_peer <= few.total // 2
    many = ConnectionLimits.of(settings, 100_000)
    assert many.of_peer == settings.connections_per_peer


# --- over a socket ----------------------------------------------------------------------------------------------------


async def app(scope: dict, receive: Callable, send: Callable) -> None:
    """Answer 200 when the body is there."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


HALF = (b"GET / HTTP/1.1\r\nHost: x\r\nX:", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab", b"")


@pytest.mark.parametrize("begun", HALF)
async def test_a_crowd_of_half_sent_requests_does_not_shut_others_out(begun: bytes) -> None:
    import uvicorn
    from uvicorn.server import ServerState

    guard = ConnectionGuard(ConnectionLimits(header_seconds=10, body_seconds=30, of_peer=5, total=20, backlog=16))
    config = uvicorn.Config(app, http=guarded_protocol(guard), ws="none", lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: config.http_protocol_class(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    port = server.sockets[0].getsockname()[1]
    crowd = []
    for _ in range(12):
        crowd.append(await asyncio.open_connection("127.0.0.1", port))
        crowd[-1][1].write(begun)
        await crowd[-1][1].drain()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
    assert guard.total == 5
    for _, each in (*crowd, (reader, writer)):
        each.close()
    server.close()
