"""The description: which parts run, how often, with which commands, variables, ports, checks and grace periods.

Values may hold names in braces; each renderer puts its own text there:

| name | meaning |
|---|---|
| `{store}` | URL of the Redis database of MLOC's records, with its password |
| `{messages}` | URL of the Redis database of Prefect's events; another one, so that flushing one keeps the other |
| `{jobs}` | URL of the Redis database of Prefect's background jobs |
| `{database}` | URL of the PostgreSQL database of Prefect |
| `{prefect}` | host and port of a Prefect API server, with its scheme |
| `{prefect_login}` | `user:password` of that API |
| `{token}` | token of the endpoint |
| `{endpoint}` | URL of the endpoint, as workers and clients reach it |
| `{results}` | root of the results, the same files everywhere |
| `{host}`, `{port}` | where the part itself listens |
| `{redis_password}`, `{database_password}` | passwords of the two stores |
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Program = Literal["valkey-server", "postgres", "prefect", "mloc", "python"]

NAMES = (
    "store",
    "messages",
    "jobs",
    "database",
    "prefect",
    "prefect_login",
    "token",
    "endpoint",
    "results",
    "host",
    "port",
    "redis_password",
    "database_password",
)
"""What may stand in braces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilePart:
    """One kind of process of the profile.

    Attributes:
        name: Of the part.
        note: What it does, and why it is configured like this; one or two lines.
        program: Which program it is.
        arguments: Arguments of that program.
        count: How many of them run.
        port: Port on which it listens, or None.
        environment: Its variables.
        alive: Path that answers 200 while the process is fit to go on, or None where only its exit shows a fault.
        ready: Path that answers 200 while it can serve, or None.
        check: Command that does the same for a part without HTTP.
        grace: Seconds between the request to stop and the kill.
        once: It ends by itself, and what comes `after` it waits for its success.
        after: Parts that it needs from the start; it waits for all others by itself.
        results: Whether it reads or writes the results.
        data: Directory whose content must survive it, or None.
    """

    name: str
    note: str
    program: Program
    arguments: tuple[str, ...] = ()
    count: int = 1
    port: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    alive: str | None = None
    ready: str | None = None
    check: tuple[str, ...] = ()
    grace: int = 30
    once: bool = False
    after: tuple[str, ...] = ()
    results: bool = False
    data: str | None = None


OURS: Mapping[str, str] = {
    "REDIS_URL": "{store}",
    "MLOC_EVENTS_REDIS_URL": "{messages}",
    "PREFECT_API_URL": "{prefect}/api",
    "PREFECT_API_AUTH_STRING": "{prefect_login}",
    "MLOC_TOKEN": "{token}",
    "MLOC_BASE_URL": "{endpoint}",
    "RESULTS_DIR": "{results}",
}
"""Variables of endpoints, bridges, coordinators and workers."""

SERVER: Mapping[str, str] = {
    "PREFECT_SERVER_API_AUTH_STRING": "{prefect_login}",
    "PREFECT_API_AUTH_STRING": "{prefect_login}",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL": "{database}",
    # The part `migrate` does both, once.
    "PREFECT_API_DATABASE_MIGRATE_ON_START": "false",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    "PREFECT_SERVER_EVENTS_MESSAGING_BROKER": "prefect_redis.messaging",
    "PREFECT_SERVER_EVENTS_MESSAGING_CACHE": "prefect_redis.messaging",
    "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
    "PREFECT_REDIS_MESSAGING_URL": "{messages}",
    "PREFECT_SERVER_DOCKET_URL": "{jobs}",
    # The web UI calls the API on the host that served it.
    "PREFECT_SERVER_UI_API_URL": "/api",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
"""Variables of the Prefect servers and their services: everything that they share is in PostgreSQL or in Redis."""

WORKER_GRACE = 60
"""A worker drains (`MLOC_DRAIN_SECONDS`, 10 s), then hands its runs over."""

PROFILE: tuple[ProfilePart, ...] = (
    ProfilePart(
        name="redis",
        note="Submissions, task records, channels and Prefect's messages. Its append-only log survives a crash.",
        program="valkey-server",
        arguments=(
            *("--port", "{port}", "--requirepass", "{redis_password}"),
            *("--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction"),
        ),
        port=6379,
        check=("valkey-cli", "-a", "{redis_password}", "--no-auth-warning", "ping"),
        data="/data",
    ),
    ProfilePart(
        name="postgres",
        note="Prefect's database: flow runs, deployments, variables.",
        program="postgres",
        port=5432,
        environment={
            "POSTGRES_USER": "prefect",
            "POSTGRES_PASSWORD": "{database_password}",
            "POSTGRES_DB": "prefect",
        },
        check=("pg_isready", "-U", "prefect"),
        grace=60,
        data="/var/lib/postgresql/data",
    ),
    ProfilePart(
        name="migrate",
        note="Makes the tables, once: Prefect servers that start together would make them at the same time and fail.",
        program="python",
        arguments=("-m", "mloc_prefect.prefect_ext.server.prepare_database"),
        environment=SERVER,
        once=True,
        after=("postgres",),
    ),
    ProfilePart(
        name="prefect",
        note="The API of Prefect and its web UI.",
        program="prefect",
        arguments=("server", "start", "--host", "{host}", "--port", "{port}", "--no-services"),
        count=2,
        port=4200,
        environment=SERVER,
        alive="/api/health",
        ready="/api/ready",
        after=("migrate", "redis"),
    ),
    ProfilePart(
        name="prefect-services",
        note="Prefect's scheduler and its other loops. One is enough: while it is away, only schedules are late.",
        program="prefect",
        arguments=("server", "services", "start"),
        environment=SERVER,
        after=("migrate", "redis"),
    ),
    ProfilePart(
        name="endpoint",
        note="MLOC's HTTP interface.",
        program="mloc",
        arguments=("serve", "--host", "{host}", "--port", "{port}"),
        count=2,
        port=8000,
        environment=OURS,
        alive="/healthz",
        ready="/readyz",
        after=("redis",),
        results=True,
    ),
    ProfilePart(
        name="bridge",
        note="Starts submitted runs and keeps the task records up to date. One is active, the other stands by.",
        program="mloc",
        arguments=("bridge",),
        count=2,
        environment=OURS,
        after=("redis",),
        results=True,
    ),
    ProfilePart(
        name="coordinator",
        note="Runs the workflow runs, which wait for their stages, so submissions progress if all workers are busy.",
        program="mloc",
        arguments=("worker", "start", "--coordinator-only"),
        count=2,
        environment=OURS,
        grace=WORKER_GRACE,
        after=("prefect",),
        results=True,
    ),
    ProfilePart(
        name="worker",
        note="Runs the stages. On a machine with GPUs run one: separate containers do not know each other's leases.",
        program="mloc",
        arguments=("worker", "start"),
        count=3,
        environment=OURS,
        grace=WORKER_GRACE,
        after=("prefect",),
        results=True,
    ),
)
"""All parts, in the order in which they can be started."""


def part(name: str) -> ProfilePart:
    """Return the part with that name."""
    return next(part for part in PROFILE if part.name == name)
