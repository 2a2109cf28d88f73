"""Which addresses other machines reach, and which services need a password beside an endpoint that they reach.

[decisions: Outgoing URLs].
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from mloc_prefect.errors import DispatchError
from mloc_prefect.redis_url import RedisUrl, RedisUrlError

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


def in_url(host: str) -> str:
    """Return `host`, a name or an address, in the form that URLs want."""
    return f"[{host}]" if ":" in host else host


def local_name(host: str) -> str:
    """Return the host of URLs by which clients on this machine reach what listens on `host`."""
    return LOOPBACK if is_wildcard(host) else in_url(host)


def unprotected(url: str) -> str | None:
    """Return the host of a Prefect URL that others reach without a password; else None."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if not host or is_loopback(host) or parts.password:
        return None
    return host


def unprotected_redis(url: str) -> str | None:
    """Return a host of a Redis that others reach without a password; else None.

    Raises:
        DispatchError: The URL cannot be read.
    """
    try:
        redis = RedisUrl.parse(url)
    except RedisUrlError as error:
        raise DispatchError("the Redis URL cannot be read", hint=f"REDIS_URL: {error}") from None
    if redis.has_password:
        return None
    return next((host for host in redis.hosts if not is_loopback(host)), None)


def refuse_open_redis(host: str, url: str, *, otherwise: str) -> None:
    """Refuse to open an endpoint beside a Redis without a password.

    Args:
        host: Where the endpoint would listen, beyond the loopback.
        url: `REDIS_URL`.
        otherwise: What to do instead of giving Redis a password.

    Raises:
        DispatchError: Others reach that Redis, and it asks for no password.
    """
    if name := unprotected_redis(url):
        raise DispatchError(
            f"an endpoint on {host} needs a Redis with a password, and REDIS_URL has none for {name}: "
            "any client of that Redis could complete or change tasks",
            hint=f"give Redis a password and write it as redis://:PASSWORD@HOST:PORT/0, or {otherwise}",
        )
