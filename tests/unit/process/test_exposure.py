"""Which addresses and services other machines reach."""

from __future__ import annotations

import pytest

from mloc_prefect.process.exposure import is_loopback, is_wildcard, unprotected


@pytest.mark.parametrize(
    ("host", "loopback", "wildcard"),
    [
        ("127.0.0.1", True, False),
        ("127.9.9.9", True, False),
        ("::1", True, False),
        ("[::1]", True, False),
        ("localhost", True, False),
        ("0.0.0.0", False, True),
        ("::", False, True),
        ("192.168.1.5", False, False),
        ("gpu-1", False, False),
    ],
)
def test_which_addresses_others_reach(host, loopback, wildcard):
    assert (is_loopback(host), is_wildcard(host)) == (loopback, wildcard)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://prefect:4200/api", "prefect"),
        ("http://user:pw@prefect:4200/api", None),
        ("http://prefect:4200/api?password=pw", "prefect"),
        ("http://127.0.0.1:4200/api", None),
        ("", None),
    ],
)
def test_which_prefect_servers_have_no_password(url, host):
    assert unprotected(url) == host
