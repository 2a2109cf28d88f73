"""IPv6 addresses that stand for an IPv4 address: a guard must know what a packet to them reaches in the end.

The kernel does this for mapped addresses, gateways of the network for the others. A translator with a prefix of the
network's own (NAT64 by RFC 6052) cannot be told from ordinary addresses.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_WORD = 0xFFFF_FFFF
_IN_LAST_WORD = {
    0: "compatible (RFC 4291)",
    0xFFFF: "mapped (RFC 4291)",
    0xFFFF_0000: "translated (RFC 2765)",
    0x0064_FF9B << 64: "NAT64 (RFC 6052)",
}
"""By the 96 bits before it."""

_LOCAL_NAT64 = 0x0064_FF9B_0001  # RFC 8215
_6TO4 = 0x2002
_TEREDO = 0x2001_0000
_ISATAP = 0x5EFE
_NOT_UNIQUE = 0x0200_0000  # the bit that tells the two forms of ISATAP apart


def forms_of(address: str) -> tuple[IPv4Address | IPv6Address, ...]:
    """Return an address and the IPv4 addresses that it may stand for.

    Raises:
        ValueError: It is no address.
    """
    plain = ip_address(address.partition("%")[0])
    if isinstance(plain, IPv4Address):
        return (plain,)
    return (plain, *map(IPv4Address, _embedded(int(plain))))


def _embedded(bits: int) -> Iterator[int]:
    before, last = bits >> 32, bits & _WORD
    if before in _IN_LAST_WORD and bits > 1:  # `::` and `::1` are themselves
        yield last
    if before & _WORD & ~_NOT_UNIQUE == _ISATAP:
        yield last
    if bits >> 112 == _6TO4:
        yield bits >> 80 & _WORD
    if bits >> 96 == _TEREDO:
        yield bits >> 64 & _WORD  # the server
        yield last ^ _WORD
    if bits >> 80 == _LOCAL_NAT64:
        # The length of the prefix is the network's choice: 48, 56, 64 or 96 bits. Bits 64 to 71 are skipped.
        choices = (
            (bits >> 64 & 0xFFFF) << 16 | bits >> 40 & 0xFFFF,
            (bits >> 64 & 0xFF) << 24 | bits >> 32 & 0xFF_FFFF,
            bits >> 24 & _WORD,
            last,
        )
        yield from (choice for choice in choices if choice >> 24)  # else it is padding
