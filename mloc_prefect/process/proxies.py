"""Proxies of the environment: our own services on this machine are called past them, and messages name them.

One mechanism for all clients of ours (httpx and so Prefect, websockets, urllib, requests): `NO_PROXY`, which all of
them read. Only a process whose environment names a proxy gets a changed one.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import MutableMapping

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SET_ASIDE = "_MLOC_SOCKS_PROXIES"
"""Variables with SOCKS proxies that this installation cannot use, as `NAME=value` lines; children inherit it."""

_VARIABLES = frozenset(f"{scheme}_proxy" for scheme in ("http", "https", "all", "ws", "wss"))


def bypass_proxies(*hosts: str, environ: MutableMapping[str, str] = os.environ) -> None:
    """Let this process and its children call loopback and `hosts` without the proxies of the environment.

    A SOCKS proxy without the library for it is set aside: httpx would refuse to make any client, even one that calls
    loopback only. `proxy_problem` reports it where it would be needed.
    """
    names = [name for name in sorted(environ) if name.lower() in _VARIABLES and environ[name]]
    if not names:
        return
    if importlib.util.find_spec("socksio") is None:
        aside = [name for name in names if environ[name].lower().startswith("socks")]
        lines = environ.get(SET_ASIDE, "").splitlines()
        if aside:
            environ[SET_ASIDE] = "\n".join([*lines, *(f"{name}={environ.pop(name)}" for name in aside)])
    listed = [part.strip() for name in ("no_proxy", "NO_PROXY") for part in environ.get(name, "").split(",")]
    if "*" not in listed:
        known = dict.fromkeys([*(part for part in listed if part), *LOOPBACK, *(host for host in hosts if host)])
        environ["no_proxy"] = environ["NO_PROXY"] = ",".join(known)


def restored(environ: MutableMapping[str, str]) -> MutableMapping[str, str]:
    """Give executors, whose libraries may know SOCKS, the proxies back that were set aside; return `environ`."""
    for line in environ.pop(SET_ASIDE, "").splitlines():
        name, _, value = line.partition("=")
        environ.setdefault(name, value)
    return environ


def proxy_of(url: str) -> str | None:
    """Return the proxy through which `url` is called, with its variable and without a password; None without one."""
    found = _proxy(url)
    return None if found is None else f"{_shown(found[1])} ({_variable(found[0])})"


def proxy_url(url: str) -> str | None:
    """Return the whole URL of the proxy through which `url` is called, with its password; None without one."""
    found = _proxy(url)
    if found is None:
        return None
    return found[1] if "://" in found[1] else f"http://{found[1]}"


def proxy_problem(url: str) -> str | None:
    """Return why `url` cannot be called through the SOCKS proxy of the environment, or None."""
    host = urlsplit(url).hostname or ""
    lines = os.environ.get(SET_ASIDE, "").splitlines()
    if not lines or not host or host in LOOPBACK or host.startswith("127.") or _is_excepted(host):
        return None
    if proxy_of(url) is not None:  # another variable names a proxy that can be used
        return None
    name, _, value = lines[0].partition("=")
    return f"{name} names the SOCKS proxy {_shown(value)}, for which a library is missing (pip install 'httpx[socks]')"


def through(url: str) -> str:
    """Return ` through the proxy ...` for messages about a call of `url` that failed; empty without a proxy."""
    found = proxy_of(url)
    return f" through the proxy {found}" if found else ""


def _proxy(url: str) -> tuple[str, str] | None:
    """Return the scheme for which the environment names a proxy, and this proxy; None if `url` is called directly."""
    from urllib.request import getproxies_environment

    parts, proxies = urlsplit(url), getproxies_environment()
    if not proxies or not parts.hostname or _is_excepted(parts.hostname):
        return None
    return next(((scheme, proxies[scheme]) for scheme in (parts.scheme.lower(), "all") if proxies.get(scheme)), None)


def _is_excepted(host: str) -> bool:
    from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # typeshed leaves it out

    return bool(proxy_bypass_environment(host))


def _variable(scheme: str) -> str:
    names = (f"{scheme}_proxy", f"{scheme.upper()}_PROXY")
    return next((name for name in names if os.environ.get(name)), names[1])


def _shown(proxy: str) -> str:
    scheme, mark, rest = proxy.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}" if mark else proxy.rpartition("@")[2]
