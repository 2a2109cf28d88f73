"""Our own services, which no spec may call: a submitter must not reach through a worker what it may not call itself.

The results of tasks at our own endpoint are the exception: posted results and uploaded files belong there.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import SplitResult, unquote, urlsplit

from mloc_prefect.artifacts.transfer.embedded_addresses import forms_of
from mloc_prefect.process.exposure import is_loopback
from mloc_prefect.redis_url import RedisUrl, RedisUrlError
from mloc_prefect.urls import DEFAULT_PORTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from ipaddress import IPv4Address, IPv6Address

    from mloc_prefect.settings import MlocSettings

_RESULTS = re.compile(r"/api/v1/results(/[^/\\;]+)*/?")
THIS_MACHINE = "this machine"

Service = tuple[str, int]
"""Host in lower case, and port."""


@dataclass(frozen=True, slots=True)
class OwnServices:
    """Where our own services listen.

    Attributes:
        closed: Services that no spec may call: Prefect's API, Redis.
        endpoints: URLs of our HTTP endpoint, where only the routes of results may be called.
    """

    closed: frozenset[Service] = frozenset()
    endpoints: frozenset[str] = frozenset()

    @classmethod
    def of(cls, settings: MlocSettings, *others: str | None) -> Self:
        """Return the services that the settings name, and those of further URLs, such as `PREFECT_API_URL`."""
        secret = (settings.redis_url, settings.events_redis_url)
        urls = (*(url.get_secret_value() for url in secret if url is not None), *others)
        closed = {found for url in urls if url for found in _services_of(url)}
        own = {settings.base_url, settings.url if "url" in settings.model_fields_set else None}
        return cls(frozenset(closed), frozenset(url for url in own if url and service_of(url)))

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any] | None) -> Self:
        """Return what `to_wire` gave; nothing for None."""
        data = wire or {}
        closed = frozenset((str(host), int(port)) for host, port in data.get("closed") or ())
        return cls(closed, frozenset(map(str, data.get("endpoints") or ())))

    def to_wire(self) -> dict[str, Any]:
        """Return a JSON-ready mapping; it holds no passwords."""
        return {"closed": sorted(map(list, self.closed)), "endpoints": sorted(self.endpoints)}

    def names(self, url: SplitResult, addresses: Callable[[str], frozenset[str]] | None = None) -> bool:
        """Return whether a URL names one of our services, and there none of the routes of results.

        Names are compared by the addresses that they stand for, which are only looked up where the port is the same.

        Args:
            url: http or https, with a host.
            addresses: Looks up the addresses of a host; replaced in tests.
        """
        look_up = addresses or addresses_of
        target = (url.hostname or "").lower().rstrip("."), url.port or DEFAULT_PORTS.get(url.scheme, 0)
        if any(_is_same(target, service, look_up) for service in self.closed):
            return True
        at = [e for e in self.endpoints if (found := service_of(e)) and _is_same(target, found, look_up)]
        return bool(at) and not any(is_result_route(url.path, urlsplit(endpoint).path) for endpoint in at)


def _services_of(url: str) -> set[Service]:
    """Return host and port of a URL, of each Sentinel if it names several."""
    if not url.lower().startswith(("redis", "valkey")):
        return {found} if (found := service_of(url)) else set()
    try:
        return {(host.lower().rstrip("."), port) for host, port in RedisUrl.parse(url).members}
    except RedisUrlError:
        return set()


def service_of(url: str) -> Service | None:
    """Return host and port of a URL, or None when it names no host."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower().rstrip("."), parts.port or DEFAULT_PORTS.get(parts.scheme, 0)
    except ValueError:
        return None
    return (host, port) if host and port else None


def is_result_route(path: str, prefix: str = "") -> bool:
    """Return whether `path` is one of the routes of results, below the endpoint's `prefix`, however it is written.

    A path that is not plain, such as `/api/v1/results/../tasks`, is none: servers differ in how they read it.
    """
    plain = unquote(unquote(path))
    prefix = prefix.rstrip("/")
    if not plain.startswith(prefix) or any(part in {".", ".."} for part in plain.split("/")):
        return False
    return _RESULTS.fullmatch(plain.removeprefix(prefix)) is not None


def addresses_of(host: str) -> frozenset[str]:
    """Return the addresses of `host`, those of this machine as one; its name alone if it has none."""
    if is_loopback(host):
        return frozenset({THIS_MACHINE})
    try:
        found = {str(row[4][0]).partition("%")[0] for row in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return frozenset({host})
    return machines_of(found)


def machines_of(addresses: Iterable[str]) -> frozenset[str]:
    """Return addresses, in each form that they may stand for; those of this machine as one."""
    found: set[str] = set()
    for address in addresses:
        forms = forms_of(address)
        found |= {THIS_MACHINE} if any(map(_is_bindable, forms)) else set(map(str, forms))
    return frozenset(found)


def is_here(address: str) -> bool:
    """Return whether `address` is surely one of this machine, whatever gateways do; nothing is sent to find out."""
    own = forms_of(address)[0]
    return _is_bindable(getattr(own, "ipv4_mapped", None) or own)


def _is_same(target: Service, service: Service, look_up: Callable[[str], Iterable[str]]) -> bool:
    if target[1] != service[1]:
        return False
    return target[0] == service[0] or bool(set(look_up(target[0])) & set(look_up(service[0])))


def _is_bindable(ip: IPv4Address | IPv6Address) -> bool:
    if ip.is_loopback or ip.is_unspecified:
        return True
    try:
        with socket.socket(socket.AF_INET6 if ip.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((str(ip), 0))
    except OSError:
        return False
    return True
