"""The file with which a worker or client on another machine joins."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mloc_prefect.process.exposure import LOOPBACK, is_loopback
from mloc_prefect.redis_url import RedisUrl
from mloc_prefect.services.up.addresses import name_for_others

if TYPE_CHECKING:
    from mloc_prefect.services.up.stack_config import StackConfig


def join_file(stack: StackConfig, redis_url: str) -> str:
    """Return the shell variables that another machine needs.

    Args:
        stack: What runs.
        redis_url: Redis of the MLOC keys, as this machine reaches it.
    """
    name = name_for_others(stack.host)
    endpoint = f"http://{name}:{stack.port}"
    lines = {
        "REDIS_URL": redis_url if stack.external_redis else redis_url.replace(f"@{LOOPBACK}:", f"@{name}:"),
        "PREFECT_API_URL": f"http://{name}:{stack.prefect_port}/api" if stack.prefect_port else stack.api_url,
        "PREFECT_API_AUTH_STRING": stack.auth,
        "MLOC_URL": endpoint,
        "MLOC_BASE_URL": endpoint,
        "MLOC_TOKEN": stack.token,
    }
    notes = [f"# {warning}" for warning in warnings(stack)]
    return "\n".join((*notes, *(f"export {key}={shlex.quote(value)}" for key, value in lines.items() if value)))


def warnings(stack: StackConfig) -> list[str]:
    """Return why that file would not work elsewhere: services of the user that only this machine reaches."""
    given = {"REDIS_URL": stack.external_redis, "PREFECT_API_URL": None if stack.prefect_port else stack.api_url}
    hosts = {key: _host(url) for key, url in given.items() if url}
    return [
        f"{key} names {host or 'a socket'}, which only this machine reaches: write there what others reach"
        for key, host in hosts.items()
        if not host or is_loopback(host)
    ]


def _host(url: str) -> str:
    if url.startswith(("http://", "https://")):
        return urlsplit(url).hostname or ""
    return next(iter(RedisUrl.parse(url).hosts), "")
