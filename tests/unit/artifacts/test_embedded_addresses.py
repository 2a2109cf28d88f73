"""The IPv4 addresses that IPv6 addresses stand for."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from mloc_prefect.artifacts.transfer.embedded_addresses import forms_of

LINK = "169.254.169.254"


@pytest.mark.parametrize(
    ("address", "inner"),
    [
        ("192.0.2.7", []),
        ("::", []),
        ("::1", []),
        ("2001:db8::1", []),
        ("fe80::1%eth0", []),
        ("::ffff:169.254.169.254", [LINK]),
        ("::169.254.169.254", [LINK]),
        ("::ffff:0:169.254.169.254", [LINK]),
        ("2002:a9fe:a9fe::1", [LINK]),
        ("64:ff9b::169.254.169.254", [LINK]),
        ("64:ff9b:1::169.254.169.254", [LINK]),
        ("2001:0:a9fe:a9fe::ffff:ffff", [LINK, "0.0.0.0"]),
        ("2001:0:c000:207::5601:5601", ["192.0.2.7", LINK]),
        ("2001:db8::5efe:169.254.169.254", [LINK]),
        ("2001:db8::200:5efe:169.254.169.254", [LINK]),
        ("2001:db8::300:5efe:169.254.169.254", []),
        ("2001:1::5601:5601", []),
        ("2003:a9fe:a9fe::1", []),
    ],
)
def test_forms(address: str, inner: list[str]) -> None:
    plain, *others = forms_of(address)
    assert plain == ip_address(address.partition("%")[0])
    assert list(map(str, others)) == inner


def test_what_is_no_address() -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        forms_of("h.example")


@pytest.mark.parametrize("rest", ["a9fe:a9:fe00::", "a9:fe:a9fe::", "0:a9:fea9:fe00:0"], ids=("48", "56", "64"))
def test_a_translator_chooses_the_length_of_its_prefix(rest: str) -> None:
    assert LINK in map(str, forms_of(f"64:ff9b:1:{rest}"))
