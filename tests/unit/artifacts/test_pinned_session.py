"""Folders at http URLs, which fsspec reads with aiohttp: pinned addresses and checked redirects, as elsewhere."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.artifacts.cache import fetch_folder
from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts, DeliveryError
from mloc_prefect.artifacts.transfer.own_services import OwnServices
from mloc_prefect.artifacts.transfer.pinned_session import pinned_sessions
from mloc_prefect.errors import ArtifactError
from tests.support.turning_names import called_server, turn_names

if TYPE_CHECKING:
    from pathlib import Path

PAGE = b'<a href="config.json">config.json</a>'
OWN_SERVICE = "is a service of MLOC itself"


def test_a_redirect_to_our_own_service_is_not_followed(tmp_path: Path) -> None:
    with called_server(body=PAGE) as first, called_server("127.0.0.2") as inner:
        first.redirect(f"http://127.0.0.2:{inner.port}/m/")
        own = OwnServices(frozenset({("127.0.0.1", inner.port)}))
        with pytest.raises((ArtifactError, DeliveryError), match=OWN_SERVICE):
            fetch_folder(f"http://127.0.0.1:{first.port}/m/", tmp_path, allowed=AllowedHosts(loopback=True, own=own))
        assert (bool(first.calls), inner.calls) == (True, [])


def test_a_later_answer_of_the_name_server_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with called_server(body=PAGE) as judged, called_server("127.0.0.2", judged.port, PAGE) as other:
        turn_names(monkeypatch, {"h.example": ["127.0.0.1", "127.0.0.2", "127.0.0.2"]})
        fetch_folder(f"http://h.example:{judged.port}/m/", tmp_path, allowed=AllowedHosts(frozenset({"h.example"})))
        assert judged.calls[-1] == f"GET /m/config.json h.example:{judged.port}"
        assert other.calls == []


@pytest.mark.parametrize("elsewhere", [1, 2], ids="{} look-ups elsewhere".format)
def test_a_name_that_turns_to_our_own_service_is_refused(
    elsewhere: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with called_server(body=PAGE) as inner:
        # The first look-up is the check of the request, the second that of the connection, the third is connected to.
        turn_names(monkeypatch, {"h.example": [*["192.0.2.7"] * elsewhere, "127.0.0.1"]})
        own = OwnServices(frozenset({("127.0.0.1", inner.port)}))
        allowed = AllowedHosts(frozenset({"h.example"}), own=own)
        with pytest.raises((ArtifactError, DeliveryError), match=OWN_SERVICE):
            fetch_folder(f"http://h.example:{inner.port}/m/", tmp_path, allowed=allowed)
        assert inner.calls == []


def test_the_loop_does_not_wait_for_the_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    turn_names(monkeypatch, {"h.example": ["127.0.0.1"], "own.example": ["192.0.2.7"]})
    real = socket.getaddrinfo
    asked: list[threading.Thread] = []

    def look_up(*arguments: Any, **options: Any) -> Any:
        asked.append(threading.current_thread())
        return real(*arguments, **options)

    async def ask(url: str, allowed: AllowedHosts) -> int:
        async with await pinned_sessions(allowed)() as session, session.get(url) as answer:
            return int(answer.status)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with called_server() as served:
        own = OwnServices(frozenset({("own.example", served.port)}))  # the checks look names up, too
        allowed = AllowedHosts(frozenset({"h.example"}), own=own)
        assert asyncio.run(ask(f"http://h.example:{served.port}/", allowed)) == 200
    assert asked
    assert threading.current_thread() not in asked
