"""Proxies of the environment: past them to our own services, and by name in messages."""

from __future__ import annotations

import importlib.util
import os
import urllib.request

import httpx
import pytest

from mloc_prefect.client.sync_client import MlocClient
from mloc_prefect.errors import DispatchError
from mloc_prefect.execution.host_types import HostSpec
from mloc_prefect.execution.hosts.host_environment import child_environment
from mloc_prefect.process import proxies
from mloc_prefect.process.proxies import SET_ASIDE, bypass_proxies, proxy_of, proxy_problem, restored, through
from mloc_prefect.services.local_runtime.runtime_wire import host_environment

NAMES = [f"{scheme}_proxy" for scheme in ("http", "https", "all", "no", "ws", "wss")]


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in (*NAMES, *(name.upper() for name in NAMES), SET_ASIDE):
        monkeypatch.setenv(name, "")  # so that what a test adds is taken back
        monkeypatch.delenv(name)


def test_an_environment_without_proxies_stays_as_it_is():
    environ = {"NO_PROXY": "x", "HTTP_PROXY": ""}
    bypass_proxies("h", environ=environ)
    assert environ == {"NO_PROXY": "x", "HTTP_PROXY": ""}


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "WSS_PROXY"])
def test_loopback_and_own_addresses_go_past_every_proxy(name):
    environ = {name: "http://proxy:9", "no_proxy": "a.example", "NO_PROXY": ".b.example, a.example"}
    for _ in range(2):
        bypass_proxies("10.1.2.3", environ=environ)
        assert environ["no_proxy"] == "a.example,.b.example,127.0.0.1,localhost,::1,10.1.2.3"
        assert environ["NO_PROXY"] == environ["no_proxy"]
    everything = {name: "http://proxy:9", "NO_PROXY": "*"}
    bypass_proxies(environ=everything)
    assert everything == {name: "http://proxy:9", "NO_PROXY": "*"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_the_libraries_read_it(monkeypatch, host):
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:9")
    monkeypatch.setenv("ALL_PROXY", "http://proxy.example:9")
    bypass_proxies()
    client = httpx.Client()
    assert client._transport_for_url(httpx.URL(f"http://{host}:4200/api")) is client._transport
    assert client._transport_for_url(httpx.URL("http://other.example")) is not client._transport
    assert urllib.request.proxy_bypass(host.strip("[]"))
    assert proxy_of(f"http://{host}:4200") is None
    websockets = pytest.importorskip("websockets.proxy")
    uri = pytest.importorskip("websockets.uri")
    assert websockets.get_proxy(uri.parse_uri(f"ws://{host}:4200/api/events/in")) is None


def test_messages_name_the_proxy_without_its_password(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy:9")
    monkeypatch.setenv("NO_PROXY", "inner.example")
    assert through("https://example.org/a") == " through the proxy http://proxy:9 (https_proxy)"
    assert through("http://example.org/a") == through("https://inner.example") == through("nonsense") == ""
    monkeypatch.setenv("ALL_PROXY", "proxy:8")
    assert proxy_of("http://example.org") == "proxy:8 (ALL_PROXY)"
    monkeypatch.setenv("MLOC_URL", "https://example.org")

    def refused(request):
        raise httpx.ConnectError("refused", request=request)

    client = MlocClient("https://example.org", None, transport=httpx.MockTransport(refused))
    text = r"does not answer through the proxy http://proxy:9 \(https_proxy\)"
    with pytest.raises(DispatchError, match=text) as caught:
        client.get("/api/v1/tasks")
    assert "NO_PROXY" in caught.value.hint


def test_a_socks_proxy_without_its_library_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("ALL_PROXY", "socks5://me:secret@proxy:9")
    for _ in range(2):
        bypass_proxies()
        assert "ALL_PROXY" not in os.environ
        assert os.environ[SET_ASIDE] == "ALL_PROXY=socks5://me:secret@proxy:9"
    for local in ("http://127.0.0.1:8000", "http://127.9.9.9", "http://localhost", "http://[::1]:1"):
        assert proxy_problem(local) is None
        MlocClient(local, None)
    problem = "ALL_PROXY names the SOCKS proxy socks5://proxy:9, for which a library is missing"
    with pytest.raises(DispatchError, match=problem):
        MlocClient("http://example.org", None)
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:8")
    assert proxy_problem("http://example.org") is None, "this one can be used"


def test_a_socks_proxy_with_its_library_stays(monkeypatch):
    monkeypatch.setattr(proxies.importlib.util, "find_spec", lambda name: object())
    environ = {"ALL_PROXY": "socks5://proxy:9"}
    bypass_proxies(environ=environ)
    assert environ["ALL_PROXY"] == "socks5://proxy:9"
    assert SET_ASIDE not in environ


def test_executors_get_back_what_was_set_aside(monkeypatch, tmp_path):
    monkeypatch.setenv(SET_ASIDE, "ALL_PROXY=socks5://proxy:9\nhttp_proxy=socks5h://proxy:9")
    wanted = {"ALL_PROXY": "socks5://proxy:9", "http_proxy": "socks5h://proxy:9"}
    assert restored(dict(os.environ)).items() >= wanted.items()
    assert host_environment().items() >= wanted.items()
    env = child_environment(HostSpec(executor="a:B", python="python", devices=()), tmp_path)
    assert env.items() >= wanted.items()
    assert SET_ASIDE not in env
