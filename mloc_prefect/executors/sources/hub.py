"""The Hugging Face hub, the last of three sources: used only when it is reachable, with a clear error otherwise."""

from __future__ import annotations

import os
import socket
import time
import urllib.parse
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mloc_prefect.artifacts.transfer.outgoing import is_temporary
from mloc_prefect.execution.failures import cause_chain
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.urls import DEFAULT_PORTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_prefect.executors.sources.source_lookup import SourceLookup

_BROKEN = frozenset({"ConnectError", "ConnectTimeout", "ReadError", "ReadTimeout", "RemoteProtocolError"})  # of httpx
_TRUE = frozenset({"1", "true", "yes", "on"})
_PROBE_SECONDS = 3.0
_REMEMBER_SECONDS = 60


def hub_problem() -> str | None:
    """Return why the hub cannot be used now, or None when it can.

    Without a network the libraries retry for minutes; one TCP connection (to the proxy, if there is one) shows it
    within three seconds. The result is cached for a minute.
    """
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        if os.environ.get(name, "").strip().lower() in _TRUE:
            return f"{name} is set"
    return _probe(*_first_hop(), int(time.monotonic() / _REMEMBER_SECONDS))


@contextmanager
def offline(active: bool) -> Iterator[None]:
    """Restrict the hub libraries, `datasets` included, to their local cache within the block.

    Args:
        active: False = change nothing.
    """
    if not active:
        yield
        return
    import datasets
    import huggingface_hub

    switches: tuple[Any, ...] = (huggingface_hub.constants, datasets.config)  # both libraries read theirs at each call
    before = [module.HF_HUB_OFFLINE for module in switches]
    try:
        for module in switches:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(switches, before, strict=True):
            module.HF_HUB_OFFLINE = value


def not_found(kind: str, identifier: str, sources: SourceLookup, reason: str) -> UserError:
    """Return the error that names the three sources that were tried and shows how to add a mirror.

    Args:
        kind: `model` or `dataset`.
        identifier: What the user wrote.
        sources: Mirrors and base of local paths.
        reason: What the hub reported.
    """
    mirrors = ", ".join(map(str, sources.mirrors.files)) or "no mirrors file"
    return UserError(
        f"{kind} '{identifier}' was not found in any of three places: mirrors ({mirrors}), "
        f"local path ({sources.local(identifier)} does not exist), Hugging Face hub ({reason}). "
        f"To use a copy of your own, add to {sources.mirrors_target}: "
        f"`{kind}s: {{{identifier}: /path/to/copy}}`"
    )


def hub_failed_for_now(error: BaseException) -> bool:
    """Return whether the hub was reached and another attempt may succeed: 429, 5xx, a broken or slow connection."""
    for cause in cause_chain(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            return is_temporary(status)
        if isinstance(cause, (ConnectionError, TimeoutError)) or type(cause).__name__ in _BROKEN:
            return True
    return False


def _first_hop() -> tuple[str, int]:
    """Return host and port that a request to the hub connects to first."""
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    scheme = urllib.parse.urlsplit(endpoint).scheme
    proxy = os.environ.get(f"{scheme}_proxy") or os.environ.get(f"{scheme.upper()}_PROXY")
    parts = urllib.parse.urlsplit(proxy or endpoint)
    return parts.hostname or "huggingface.co", parts.port or DEFAULT_PORTS.get(parts.scheme, 80)


@lru_cache(maxsize=8)
def _probe(host: str, port: int, period: int) -> str | None:
    del period  # part of the cache key only
    try:
        socket.create_connection((host, port), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        return f"cannot be reached: {host}: {error.strerror or error}"
    return None
