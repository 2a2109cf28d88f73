"""The address that was judged is the one that is connected to, whatever the name server says the second time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx
import pytest

from mloc_prefect.artifacts.transfer.delivery import HttpDestination, deliver
from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts, DeliveryError, open_url
from mloc_prefect.artifacts.transfer.own_services import OwnServices
from mloc_prefect.artifacts.transfer.pinned_transport import PinnedSyncTransport
from tests.support.turning_names import called_server, turn_names

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Call = Callable[[str, AllowedHosts], None]


@pytest.fixture(params=["urllib", "httpx", "httpx without asyncio"])
def call(request: pytest.FixtureRequest, tmp_path: Path) -> Call:
    """Calls a URL as downloads do, as results are delivered, or as the client of Qdrant does."""
    if request.param == "urllib":

        def fetch(url: str, allowed: AllowedHosts) -> None:
            with open_url(url, allowed, timeout=5) as answer:
                answer.read()

        return fetch

    if request.param == "httpx without asyncio":

        def ask(url: str, allowed: AllowedHosts) -> None:
            allowed.check(url)
            with httpx.Client(transport=PinnedSyncTransport(allowed.addresses), follow_redirects=True) as client:
                client.post(url, json={}).raise_for_status()

        return ask

    def send(url: str, allowed: AllowedHosts) -> None:
        result = tmp_path / "result.json"
        result.write_text("{}", encoding="utf-8")
        asyncio.run(
            deliver(HttpDestination(url, timeout=5), task_id="t", result=result, worker_id=None, allowed=allowed)
        )

    return send


@pytest.fixture(autouse=True)
def _without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_a_later_answer_of_the_name_server_does_not_count(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    with called_server() as judged, called_server("127.0.0.2", judged.port) as other:
        turn_names(monkeypatch, {"h.example": ["127.0.0.1", "127.0.0.2", "127.0.0.2"]})
        call(f"http://h.example:{judged.port}/x", AllowedHosts(frozenset({"h.example"})))
        assert [line.split(" ", 1)[1] for line in judged.calls] == [f"/x h.example:{judged.port}"]
        assert other.calls == []


@pytest.mark.parametrize("elsewhere", [1, 2], ids="{} look-ups elsewhere".format)
def test_a_name_that_turns_to_our_own_service_is_refused(
    call: Call, elsewhere: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with called_server() as inner:
        # The first look-up is the check of the request, the second that of the connection, the third is connected to.
        turn_names(monkeypatch, {"h.example": [*["192.0.2.7"] * elsewhere, "127.0.0.1"]})
        allowed = AllowedHosts(frozenset({"h.example"}), own=OwnServices(frozenset({("127.0.0.1", inner.port)})))
        with pytest.raises(DeliveryError, match="is a service of MLOC itself"):
            call(f"http://h.example:{inner.port}/x", allowed)
        assert inner.calls == []


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "::1", "::ffff:127.0.0.1", "::127.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1"),
        *("169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "::169.254.169.254", "2002:a9fe:a9fe::"),
        *("64:ff9b::a9fe:a9fe", "64:ff9b:1:a9fe:a9:fe00::", "2001:0:a9fe:a9fe::", "2001::5601:5601"),
        *("::ffff:0:a9fe:a9fe", "2001:db8::5efe:a9fe:a9fe", "0.0.0.0", "::", "::ffff:0.0.0.0"),
    ],
)
def test_a_name_below_a_domain_leads_neither_here_nor_to_the_link(
    call: Call, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with called_server() as inner:
        turn_names(monkeypatch, {"made.h.example": [address]})
        with pytest.raises(DeliveryError, match="stands for an address that it must not have") as caught:
            call(f"http://made.h.example:{inner.port}/x", AllowedHosts(frozenset({"*.h.example"})))
        assert "MLOC_ALLOWED_HOSTS=made.h.example" in (caught.value.hint or "")
        assert inner.calls == []


def test_the_loopback_by_name_is_the_loopback(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    turn_names(monkeypatch, {"a.localhost": ["192.0.2.7"]})
    with pytest.raises(DeliveryError, match="stands for an address that it must not have"):
        call("http://a.localhost:8080/x", AllowedHosts(loopback=True))


def test_a_redirect_is_pinned_too(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    with called_server() as first, called_server() as inner:
        turn_names(monkeypatch, {"h.example": ["192.0.2.7", "127.0.0.1"]})
        first.redirect(f"http://h.example:{inner.port}/in")
        own = OwnServices(frozenset({("127.0.0.1", inner.port)}))
        with pytest.raises(DeliveryError, match="is a service of MLOC itself"):
            call(f"http://127.0.0.1:{first.port}/x", AllowedHosts(frozenset({"h.example"}), loopback=True, own=own))
        assert (len(first.calls), inner.calls) == (1, [])


def test_another_address_is_tried_when_one_does_not_answer(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    with called_server() as served:
        allowed = AllowedHosts(frozenset({"h.example"}))
        rows = allowed.addresses
        turn_names(monkeypatch, {"h.example": ["127.0.0.1"]})
        closed = [(*row[:4], ("127.0.0.9", 1)) for row in rows(f"http://h.example:{served.port}/")]
        monkeypatch.setattr(AllowedHosts, "addresses", lambda self, url: [*closed, *rows(url)])
        call(f"http://h.example:{served.port}/x", allowed)
        assert len(served.calls) == 1


def test_a_proxy_looks_up_names_itself(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    with called_server() as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        call("http://h.example/x", AllowedHosts(frozenset({"h.example"})))
        assert [line.split(" ", 1)[1] for line in proxy.calls] == ["http://h.example/x h.example"]
