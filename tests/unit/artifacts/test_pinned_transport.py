"""What the transports of httpx with pinned addresses keep between requests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts, DeliveryError
from mloc_prefect.artifacts.transfer.pinned_transport import PinnedSyncTransport, PinnedTransport
from tests.support.turning_names import called_server

if TYPE_CHECKING:
    from collections.abc import Sequence

ALLOWED = AllowedHosts(loopback=True)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the transports of httpx that are made: each reads the certificates of all authorities."""
    found: list[Any] = []
    for kind in (httpx.HTTPTransport, httpx.AsyncHTTPTransport):

        class Counted(kind):  # type: ignore[misc, valid-type]
            def __init__(self, **options: Any) -> None:
                found.append(self)
                super().__init__(**options)

        monkeypatch.setattr(httpx, kind.__name__, Counted)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return found


async def ask(urls: Sequence[str]) -> None:
    async with httpx.AsyncClient(transport=PinnedTransport(ALLOWED.addresses)) as client:
        for url in urls:
            (await client.get(url)).raise_for_status()


def ask_without_asyncio(urls: Sequence[str]) -> None:
    with httpx.Client(transport=PinnedSyncTransport(ALLOWED.addresses)) as client:
        for url in urls:
            client.get(url).raise_for_status()


@pytest.mark.parametrize("way", ["asyncio", "threads"])
def test_one_transport_is_made_for_each_origin(way: str, made: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def call(*urls: str) -> None:
        asyncio.run(ask(urls)) if way == "asyncio" else ask_without_asyncio(urls)

    with called_server() as served:
        url = f"http://127.0.0.1:{served.port}/"
        call(url, url, url)
        assert len(made) == 1
        call(url, url.replace("127.0.0.1", "localhost"), url)
        assert len(made) == 3
        with pytest.raises(DeliveryError, match="is not allowed"):
            call("http://h.example/")
        assert len(made) == 3
        monkeypatch.setenv("http_proxy", url)
        monkeypatch.setenv("no_proxy", "")
        call("http://h.example/", "http://h.example/x")
        assert len(made) == 4
