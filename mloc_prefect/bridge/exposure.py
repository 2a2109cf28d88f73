"""What other machines reach, and what must not stand open beside an endpoint that they reach.

See architecture, "Outgoing URLs".
"""

from __future__ import annotations

import ipaddress
from urllib.parse import parse_qs, urlsplit

from mloc_prefect.errors import DispatchError

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"  # noqa: S104  # only with a token


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches `host`, a name or an address."""
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """Return whether `host` means all addresses of this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return not host


def unprotected(url: str) -> str | None:
    """Return the host of a Redis or Prefect URL that others reach without a password; None when it is not so."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if not host or is_loopback(host) or parts.password or parse_qs(parts.query).get("password"):
        return None
    return host


def refuse_open_redis(host: str, url: str, *, otherwise: str) -> None:
    """Refuse to open an endpoint beside a Redis that stands open.

    Args:
        host: Where the endpoint would listen, beyond the loopback.
        url: `REDIS_URL`.
        otherwise: What to do instead of giving it a password.

    Raises:
        DispatchError: Others reach that Redis, and it asks for no password.
    """
    if name := unprotected(url):
        raise DispatchError(
            f"an endpoint on {host} needs a Redis with a password, and REDIS_URL has none for {name}: "
            "whoever reaches that Redis could complete or change tasks",
            hint=f"give Redis a password and write it as redis://:PASSWORD@HOST:PORT/0, or {otherwise}",
        )
