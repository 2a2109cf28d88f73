"""Decides what `mloc up` runs: which parts, on which ports, with which secrets, in which environment."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from mloc_prefect.bridge.exposure import (
    EVERYWHERE,
    LOOPBACK,
    is_loopback,
    is_wildcard,
    refuse_open_redis,
    unprotected,
)
from mloc_prefect.errors import DispatchError
from mloc_prefect.execution.dirs import run_dir
from mloc_prefect.up.addresses import free_port, name_for_others, required_port
from mloc_prefect.up.secret_files import SecretFiles

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.settings import MlocSettings

_TOKENS = ("MLOC_TOKEN", "ORCHESTRATOR_TOKEN", "PREFECT_INTEGRATIONS_MLOC_TOKEN")  # as the settings read them
_DROPPED = ("NOTIFY_SOCKET", "LOG_FILE", "MLOC_LOG_FILE", "PREFECT_SERVER_API_AUTH_STRING")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One `mloc up`, decided but not started.

    Attributes:
        home: `MLOC_HOME`.
        run_dir: Directory of its sockets.
        logs: Directory of its logs.
        host: Address that Valkey and the Prefect server listen on.
        endpoint_host: Address that the endpoint listens on.
        named_host: Whether the user named that address.
        port: Port of the endpoint.
        prefect_port: Port of the embedded Prefect server, or None when `PREFECT_API_URL` names another.
        redis_port: Port of the embedded Valkey, or None when `REDIS_URL` names another.
        api_url: `PREFECT_API_URL` of the parts.
        token: Token of the endpoint, or None for an open one.
        token_file: File of that token if we made it.
        token_variable: Variable in which the user set it, if any.
        auth: `user:password` of the embedded server's API, or None for an open one.
        results: Root of results.
        fsync: When Valkey's log goes to disk.
        external_redis: `REDIS_URL`, or None.
    """

    home: Path
    run_dir: Path
    logs: Path
    host: str
    endpoint_host: str
    named_host: bool
    port: int
    prefect_port: int | None
    redis_port: int | None
    api_url: str
    token: str | None
    token_file: Path | None
    token_variable: str | None
    auth: str | None
    results: Path
    fsync: Literal["everysec", "always"]
    external_redis: str | None

    @property
    def url(self) -> str:
        """The endpoint, for clients on this machine."""
        return f"http://{_here(self.endpoint_host)}:{self.port}"

    @property
    def ui_url(self) -> str:
        """Prefect's web pages."""
        return self.api_url.removesuffix("/").removesuffix("/api")

    @property
    def redis_text(self) -> str:
        """The Redis in words, without its password."""
        if self.external_redis is None:
            return f"redis://{_here(self.host)}:{self.redis_port}/0   password in {self.home / 'valkey' / 'password'}"
        parts = urlsplit(self.external_redis)
        place = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{place}{parts.path}"

    @property
    def beyond_loopback(self) -> bool:
        """Whether other machines can reach Valkey and the Prefect server."""
        return not is_loopback(self.host)

    @property
    def secrets(self) -> SecretFiles:
        """Where the secrets lie."""
        return SecretFiles.below(self.home)

    @property
    def ports(self) -> dict[str, int]:
        """Ports to take again the next time."""
        found = {"prefect": self.prefect_port, "redis": self.redis_port}
        return {name: port for name, port in found.items() if port is not None}


def decide(settings: MlocSettings, ports: Mapping[str, int], environ: Mapping[str, str] = os.environ) -> Stack:
    """Return what to run; makes the secrets that an address beyond the loopback needs.

    A token without an address opens the endpoint alone to other machines, as MLOC does.

    Args:
        settings: The settings in force, options of the command included.
        ports: Ports of the last time, by part.
        environ: For `PREFECT_API_URL`, and for the name of the variable that has the token.

    Raises:
        DispatchError: The endpoint's port is in use, the address is none of this machine, or a service named by the
            user has no password although the address is beyond the loopback.
    """
    token = settings.token.get_secret_value() if settings.token else None
    host = settings.host or LOOPBACK
    endpoint_host = settings.host or (EVERYWHERE if token else LOOPBACK)
    beyond = not is_loopback(endpoint_host)
    redis = settings.redis_url.get_secret_value() if settings.redis_url else None
    api_url = environ.get("PREFECT_API_URL") or None
    if beyond:
        _refuse_unprotected(endpoint_host, redis, api_url, environ)
    port = required_port(settings.port, endpoint_host)
    prefect_port = None if api_url else free_port(ports.get("prefect", settings.server_port), host)
    files = SecretFiles.below(settings.home)
    made = beyond and not token
    return Stack(
        home=settings.home,
        run_dir=run_dir(settings.home),
        logs=settings.home / "logs",
        host=host,
        endpoint_host=endpoint_host,
        named_host=settings.host is not None,
        port=port,
        prefect_port=prefect_port,
        redis_port=None if redis else free_port(ports.get("redis", settings.redis_port), host, LOOPBACK),
        api_url=api_url or f"http://{_here(host)}:{prefect_port}/api",
        token=files.read_or_make(files.token) if made else token,
        token_file=files.token if made else None,
        token_variable=next((name for name in _TOKENS if environ.get(name)), None),
        auth=files.read_or_make(files.prefect_auth, "mloc:") if beyond and not api_url else None,
        results=settings.results_root,
        fsync=settings.redis_fsync,
        external_redis=redis,
    )


def child_environment(
    stack: Stack, redis_url: str, messaging_url: str | None, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the environment of the endpoint, the bridge and the worker.

    Args:
        stack: What runs.
        redis_url: Redis of the MLOC keys.
        messaging_url: Redis of Prefect's events if it is ours, else None.
        environ: Environment of the user, on which it is built.
    """
    env = {name: value for name, value in environ.items() if name not in _DROPPED}
    env |= {
        "MLOC_HOME": str(stack.home),
        "MLOC_RESULTS_DIR": str(stack.results),
        "MLOC_REDIS_URL": redis_url,
        "MLOC_PORT": str(stack.port),
        "MLOC_URL": stack.url,
        "PREFECT_API_URL": stack.api_url,
    }
    if stack.named_host:  # else the endpoint decides the same, and knows that nobody chose it
        env["MLOC_HOST"] = stack.endpoint_host
    if not (environ.get("MLOC_BASE_URL") or environ.get("ORCHESTRATOR_BASE_URL")):
        env["MLOC_BASE_URL"] = stack.url
    if messaging_url:
        env["MLOC_EVENTS_REDIS_URL"] = messaging_url
    if stack.token:
        env["MLOC_TOKEN"] = stack.token
    if stack.auth:
        env["PREFECT_API_AUTH_STRING"] = stack.auth
    return env


def command(*arguments: str) -> list[str]:
    """Return the command line of `mloc ARGUMENTS` in this interpreter, whatever the working directory holds."""
    return [sys.executable, "-P", "-m", "mloc_prefect.cli", *arguments]


def _here(host: str) -> str:
    """Return where clients on this machine find what listens on `host`."""
    return LOOPBACK if is_wildcard(host) else name_for_others(host)


def _refuse_unprotected(host: str, redis: str | None, api_url: str | None, environ: Mapping[str, str]) -> None:
    """Refuse to open a door beside which there is an open one."""
    if redis:
        refuse_open_redis(host, redis, otherwise="leave REDIS_URL out")
    if api_url and unprotected(api_url) and not _prefect_login(environ):
        raise DispatchError(
            f"an endpoint on {host} needs a Prefect API with a password, and PREFECT_API_AUTH_STRING is not set: "
            "whoever reaches that API could start runs here",
            hint="start the server with PREFECT_SERVER_API_AUTH_STRING and set PREFECT_API_AUTH_STRING to the same",
        )


def _prefect_login(environ: Mapping[str, str]) -> bool:
    return bool(environ.get("PREFECT_API_AUTH_STRING") or environ.get("PREFECT_API_KEY"))
