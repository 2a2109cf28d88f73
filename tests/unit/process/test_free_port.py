"""Ports of the loopback: in use or free."""

from __future__ import annotations

import socket

import pytest

from mloc_prefect.process.free_port import is_free, listen, listen_near, ports_from


def test_a_port_in_use_is_not_free_and_the_next_is_taken() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert not is_free("127.0.0.1", port)
        with pytest.raises(OSError, match="in use"):
            listen("127.0.0.1", port)
        with listen_near("127.0.0.1", port, tried=20) as other:
            assert other.getsockname()[1] != port
        with listen_near("127.0.0.1", port, tried=1) as other:
            assert other.getsockname()[1] != port
    assert is_free("127.0.0.1", port)


def test_the_protocol_is_named() -> None:
    """Else asyncio does not turn Nagle's delay off."""
    with listen("localhost", 0) as sock:
        assert sock.proto == socket.IPPROTO_TCP


@pytest.mark.parametrize(
    "call", [lambda h: listen(h, 0), lambda h: is_free(h, 1), lambda h: listen_near(h, 1, tried=3)]
)
def test_an_address_of_another_machine_is_an_error(call) -> None:
    with pytest.raises(OSError, match=r"assign|address"):
        call("192.0.2.1")


def test_ports_end_where_the_numbers_end() -> None:
    assert list(ports_from(65534, 20)) == [65534, 65535]
