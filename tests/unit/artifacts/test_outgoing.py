"""Allowed hosts, redirects, and what messages show of URLs."""

from __future__ import annotations

import io
import urllib.request
from email.message import Message

import pytest

from mloc_prefect.artifacts.transfer.outgoing import (
    AllowedHosts,
    DeliveryError,
    _CheckedRedirects,
    check_url,
    redirected,
    shown_text,
    shown_url,
)
from mloc_prefect.errors import ArtifactError, SettingsError
from mloc_prefect.settings import get_settings

HOSTS = AllowedHosts(frozenset({"h", "other"}))
SECRET = {"Authorization": "Bearer x", "x-token": "y"}


def test_allowed_hosts_come_from_settings() -> None:
    settings = get_settings(allowed_hosts="a.example, *.b.example,c:8443", base_url="http://hub:8000")
    hosts = AllowedHosts.of(settings, loopback=False)
    for good in ("http://a.example/x", "https://x.b.example", "https://c:8443/", "http://hub:8000/api/v1/results"):
        hosts.check(good)
    for bad in (
        "http://b.example",
        "http://c/",
        "http://localhost",
        "http://127.0.0.1:1",
        "http://xa.example",
        "http://hub:1/",
    ):
        with pytest.raises(DeliveryError, match="not allowed"):
            hosts.check(bad)
    local = AllowedHosts.of(settings, loopback=True)
    for good in ("http://localhost:1024", "http://127.0.0.5:65535/", "http://[::1]:8080/"):
        local.check(good)


@pytest.mark.parametrize(
    ("ports", "good", "bad"),
    [
        ("1024-65535", (1024, 8080), (22, 80, 1023)),
        ("80, 9000-9002", (80, 9001), (81, 8080, 9003)),
        ("", (), (80, 8080)),
    ],
)
def test_the_loopback_is_open_at_the_named_ports(ports: str, good: tuple[int, ...], bad: tuple[int, ...]) -> None:
    hosts = AllowedHosts.of(get_settings(loopback_ports=ports), loopback=True)
    for port in good:
        hosts.check(f"http://127.0.0.1:{port}/x")
    for port in bad:
        with pytest.raises(DeliveryError, match=f"port {port} of .* is not allowed") as caught:
            hosts.check(f"http://localhost:{port}/x")
        assert f"MLOC_LOOPBACK_PORTS={f'{ports},' if ports else ''}{port}" in (caught.value.hint or "")
        named = get_settings(loopback_ports=ports, allowed_hosts=f"localhost:{port}")
        AllowedHosts.of(named, loopback=True).check(f"http://localhost:{port}/x")


@pytest.mark.parametrize("ports", ["0", "70000", "9-8", "http", "8080-", "-5", "1--2"])
def test_ports_that_are_none_are_a_mistake_of_the_settings(ports: str) -> None:
    with pytest.raises(SettingsError, match="loopback_ports"):
        get_settings(loopback_ports=ports)


@pytest.mark.parametrize(
    "host",
    ["127.1", "2130706433", "0x7f.1", "0.0.0.0", "[::ffff:127.0.0.1]", "localhost.evil.example", "127.0.0.1.evil"],
)
def test_the_loopback_has_its_plain_names_only(host: str) -> None:
    with pytest.raises(DeliveryError, match="not allowed"):
        AllowedHosts(loopback=True).check(f"http://{host}:8080/x")


@pytest.mark.parametrize("url", ["http://a.example\\@h/", "http://h\\.evil/", "http://h /x", "http://u\x7f@h/"])
def test_urls_that_programs_read_in_two_ways_are_refused(url: str) -> None:
    with pytest.raises(DeliveryError, match="is not an http or https URL"):
        HOSTS.check(url)


@pytest.mark.parametrize(
    ("location", "target", "kept"),
    [
        ("/y", "http://h/y", True),
        ("http://h/y", "http://h/y", True),
        ("http://H/y", "http://H/y", True),
        ("http://user@h/y", "http://user@h/y", True),
        ("http://other/y", "http://other/y", False),
        ("http://h:81/y", "http://h:81/y", False),
        ("https://h/y", "https://h/y", False),
    ],
)
def test_headers_stay_at_their_origin(location: str, target: str, kept: bool) -> None:
    assert redirected("http://h/x", location, SECRET, HOSTS) == (target, SECRET if kept else {})
    request = urllib.request.Request("http://h/x", headers={**SECRET, "Range": "bytes=5-"})
    handler = _CheckedRedirects(HOSTS, SECRET)
    new = handler.redirect_request(request, io.BytesIO(), 302, "", Message(), target)  # type: ignore[arg-type]
    assert new is not None
    assert {name for name, _ in new.header_items()} == {"Range", *(("Authorization", "X-token") if kept else ())}


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("http://169.254.169.254/latest", "is not allowed"),
        ("file:///etc/passwd", "is not an http or https URL"),
        ("http://[::1", "is not a URL"),
        ("http://h:x/", "is not a URL"),
    ],
)
def test_redirects_that_must_not_be_followed(location: str, text: str) -> None:
    with pytest.raises(DeliveryError, match=text) as caught:
        redirected("http://h/x", location, {}, HOSTS)
    assert not caught.value.retryable
    with pytest.raises(DeliveryError, match=text):
        _CheckedRedirects(HOSTS, {}).redirect_request(
            urllib.request.Request("http://h/x"),
            io.BytesIO(),
            302,
            "",
            Message(),  # type: ignore[arg-type]
            location,
        )


def test_shown_urls_have_no_secrets() -> None:
    assert shown_url("https://u:p@h:8/p?q=1#f") == "https://h:8/p"
    assert shown_url("http://[::1") == "<unreadable url>"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sftp://user:secret@inner.example/m", "sftp://inner.example/m"),
        ("s3://key:secret@bucket/m?token=secret", "s3://bucket/m"),
        (
            "zip://m.jsonl::https://user:secret@inner.example/m.zip?token=secret",
            "zip://m.jsonl::https://inner.example/m.zip",
        ),
    ],
)
def test_what_is_shown_of_urls(url: str, shown: str) -> None:
    assert shown_url(url) == shown
    assert shown_text(f"about '{url}', no more") == f"about '{shown}', no more"
    with pytest.raises(ArtifactError) as caught:
        check_url(f"{url}::x", AllowedHosts())
    assert "secret" not in str(caught.value)
