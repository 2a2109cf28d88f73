"""Folders at http URLs, which fsspec reads with aiohttp: pinned addresses and checked redirects, as elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mloc_prefect.artifacts.cache import fetch_folder
from mloc_prefect.artifacts.transfer.outgoing import AllowedHosts, DeliveryError
from mloc_prefect.artifacts.transfer.own_services import OwnServices
from mloc_prefect.errors import ArtifactError
from tests.support.turning_names import called_server, turn_names

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("aiohttp")
PAGE = b'<a href="config.json">config.json</a>'


def test_a_redirect_to_another_host_is_not_followed(tmp_path: Path) -> None:
    with called_server(body=PAGE) as first, called_server() as inner:
        first.redirect(f"http://127.0.0.2:{inner.port}/m/")
        own = OwnServices(frozenset({("127.0.0.1", inner.port)}))
        with pytest.raises((ArtifactError, DeliveryError)):
            fetch_folder(f"http://127.0.0.1:{first.port}/m/", tmp_path, allowed=AllowedHosts(loopback=True, own=own))
        assert (bool(first.calls), inner.calls) == (True, [])


def test_a_second_answer_of_the_name_server_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with called_server() as inner:
        turn_names(monkeypatch, {"h.example": ["192.0.2.7", "127.0.0.1"]})
        own = OwnServices(frozenset({("127.0.0.1", inner.port)}))
        allowed = AllowedHosts(frozenset({"h.example"}), own=own)
        allowed.check(f"http://h.example:{inner.port}/m/")  # the first answer
        with pytest.raises((ArtifactError, DeliveryError)):
            fetch_folder(f"http://h.example:{inner.port}/m/", tmp_path, allowed=allowed)
        assert inner.calls == []
