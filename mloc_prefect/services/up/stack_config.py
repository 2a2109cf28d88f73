"""The configuration of one `mloc up`: which parts run, on which ports, with which secrets, in which environment."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from mloc_prefect.errors import DispatchError
from mloc_prefect.process.exposure import (
    EVERYWHERE,
    LOOPBACK,
    is_loopback,
    local_name,
    refuse_open_redis,
    unprotected,
)
from mloc_prefect.process.run_dir import run_dir
from mloc_prefect.redis_url import RedisUrl
from mloc_prefect.services.profile.native_commands import names_of
from mloc_prefect.services.profile.topology import PROFILE
from mloc_prefect.services.secret_files import SecretFiles
from mloc_prefect.services.up.addresses import free_port, required_port

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.settings import MlocSettings

_TOKENS = ("MLOC_TOKEN", "ORCHESTRATOR_TOKEN", "PREFECT_INTEGRATIONS_MLOC_TOKEN")  # as the settings read them
DROPPED = ("NOTIFY_SOCKET", "LOG_FILE", "MLOC_LOG_FILE", "PREFECT_SERVER_API_AUTH_STRING")
"""Variables of the user that are not passed on to parts."""

_DATABASE = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")  # as Prefect reads them


@dataclass(frozen=True, slots=True, kw_only=True)
class StackConfig:
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
        auth: `user:password` of the embedded server's API, or None when `PREFECT_API_URL` names another.
        results: Root of results.
        fsync: When Valkey's log goes to disk.
        external_redis: `REDIS_URL`, or None.
        names: Host names of this machine beyond its own, by which its Prefect server is reached.
        automations: Whether automations act on that server.
        database: URL of the PostgreSQL database of the profile's Prefect servers, or None without a profile.
        more_ports: Ports of the second and further processes of the profile, by their names.
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
    names: tuple[str, ...] = ()
    automations: bool = True
    database: str | None = None
    more_ports: Mapping[str, int] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The endpoint, for clients on this machine."""
        return f"http://{local_name(self.endpoint_host)}:{self.port}"

    @property
    def ui_url(self) -> str:
        """Prefect's web pages."""
        return self.api_url.removesuffix("/").removesuffix("/api")

    @property
    def redis_text(self) -> str:
        """The Redis as text, without its password."""
        if self.external_redis is None:
            password = self.home / "valkey" / "password"
            return f"redis://{local_name(self.host)}:{self.redis_port}/0   password in {password}"
        return RedisUrl.parse(self.external_redis).shown

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
        return {name: port for name, port in found.items() if port is not None} | dict(self.more_ports)

    @property
    def profile_ports(self) -> dict[str, int]:
        """Port of each process of the profile that listens."""
        assert self.prefect_port is not None
        return {"prefect-1": self.prefect_port, "endpoint-1": self.port, **self.more_ports}


def decide(
    settings: MlocSettings,
    ports: Mapping[str, int],
    environ: Mapping[str, str] = os.environ,
    *,
    profile: bool = False,
) -> StackConfig:
    """Return what to run; makes the secrets of our servers.

    A token without an address opens the endpoint alone to other machines, as MLOC does.

    Args:
        settings: The settings in force, options of the command included.
        ports: Ports of the last time, by part.
        environ: For `PREFECT_API_URL`, and for the name of the variable that has the token.
        profile: Run every part more than once; needs a PostgreSQL database, which a variable of Prefect names.

    Raises:
        DispatchError: The endpoint's port is in use, the address is none of this machine, or a service named by the
            user has no password although the address is beyond the loopback; the profile has no database.
    """
    database = _profile_database(environ) if profile else None
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
    redis_port = None if redis else free_port(ports.get("redis", settings.redis_port), host, LOOPBACK)
    taken = {found for found in (port, prefect_port, redis_port) if found}
    more = _more_ports(ports, taken, {"prefect": host, "endpoint": endpoint_host}) if profile else {}
    files = SecretFiles.below(settings.home)
    made = beyond and not token
    return StackConfig(
        home=settings.home,
        run_dir=run_dir(settings.home),
        logs=settings.home / "logs",
        host=host,
        endpoint_host=endpoint_host,
        named_host=settings.host is not None,
        port=port,
        prefect_port=prefect_port,
        redis_port=redis_port,
        api_url=api_url or f"http://{local_name(host)}:{prefect_port}/api",
        token=files.read_or_make(files.token) if made else token,
        token_file=files.token if made else None,
        token_variable=next((name for name in _TOKENS if environ.get(name)), None),
        auth=None if api_url else files.prefect_login(),
        results=settings.results_root,
        fsync=settings.redis_fsync,
        external_redis=redis,
        names=tuple(filter(None, [urlsplit(settings.base_url or "").hostname])),
        automations=settings.automations,
        database=database,
        more_ports=more,
    )


def _profile_database(environ: Mapping[str, str]) -> str:
    """Return the URL of the profile's database.

    Raises:
        DispatchError: There is none, it is no PostgreSQL, or the Prefect servers are to run elsewhere.
    """
    how = "set PREFECT_SERVER_DATABASE_CONNECTION_URL=postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE"
    url = next((environ[name] for name in _DATABASE if environ.get(name)), "")
    if environ.get("PREFECT_API_URL"):
        raise DispatchError(
            "`mloc up --profile ha` runs its own Prefect servers, and PREFECT_API_URL names another one",
            hint="unset PREFECT_API_URL, or leave --profile out",
        )
    if not url:
        raise DispatchError("`mloc up --profile ha` needs a PostgreSQL database for its Prefect servers", hint=how)
    if not url.startswith("postgresql+asyncpg://"):
        kind = url.partition(":")[0]
        raise DispatchError(
            f"`mloc up --profile ha` needs PostgreSQL, and PREFECT_SERVER_DATABASE_CONNECTION_URL begins with {kind!r}",
            hint=how,
        )
    return url


def _more_ports(ports: Mapping[str, int], taken: set[int], hosts: Mapping[str, str]) -> dict[str, int]:
    """Return ports for the processes of the profile beyond the first of each part."""
    found: dict[str, int] = {}
    for part in (part for part in PROFILE if part.name in hosts):
        for name in names_of(part)[1:]:
            wanted = ports.get(name, max(taken) + 1)
            while (port := free_port(wanted, hosts[part.name])) in taken:
                wanted = port + 1
            found[name] = port
            taken.add(port)
    return found


def require_writable(results: Path) -> None:
    """Check that tasks can write their results; the directory is made if needed.

    Raises:
        DispatchError: They cannot.
    """
    try:
        results.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=results):
            return
    except OSError as error:
        raise DispatchError(
            f"the results directory {results} cannot be written: {error.strerror}",
            hint="make it writable, or set RESULTS_DIR to another directory",
        ) from None


def child_environment(
    stack: StackConfig, redis_url: str, messaging_url: str | None, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the environment of the endpoint, the bridge and the worker.

    Args:
        stack: What runs.
        redis_url: Redis of the MLOC keys.
        messaging_url: Redis of Prefect's events if it is ours, else None.
        environ: Environment of the user, on which it is built.
    """
    env = {name: value for name, value in environ.items() if name not in DROPPED}
    env |= {
        "MLOC_HOME": str(stack.home),
        "MLOC_RESULTS_DIR": str(stack.results),
        "MLOC_REDIS_URL": redis_url,
        "MLOC_PORT": str(stack.port),
        "MLOC_URL": stack.url,
        "PREFECT_API_URL": stack.api_url,
    }
    if stack.named_host:  # else the endpoint decides the same, and knows that the user did not choose it
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


def own_hosts(stack: StackConfig) -> list[str]:
    """Return the hosts of the services that this stack runs itself: they are called past every proxy."""
    urls = [stack.url] if stack.prefect_port is None else [stack.url, stack.api_url]
    return [urlsplit(url).hostname or "" for url in urls]


def _refuse_unprotected(host: str, redis: str | None, api_url: str | None, environ: Mapping[str, str]) -> None:
    """Refuse an endpoint for other machines when Redis or Prefect, which they would reach too, have no password."""
    if redis:
        refuse_open_redis(host, redis, otherwise="leave REDIS_URL out")
    if api_url and unprotected(api_url) and not _prefect_login(environ):
        raise DispatchError(
            f"an endpoint on {host} needs a Prefect API with a password, and PREFECT_API_AUTH_STRING is not set: "
            "any client of that API could start runs here",
            hint="start the server with PREFECT_SERVER_API_AUTH_STRING and set PREFECT_API_AUTH_STRING to the same",
        )


def _prefect_login(environ: Mapping[str, str]) -> bool:
    return bool(environ.get("PREFECT_API_AUTH_STRING") or environ.get("PREFECT_API_KEY"))
