"""`mloc serve`, `mloc bridge`, `mloc worker start`: single parts of `mloc up`, against the user's Redis and Prefect."""

from __future__ import annotations

from typing import Annotated

import typer

from mloc_prefect.cli.boundary import examples

SERVE_EXAMPLES = examples(
    "REDIS_URL=redis://redis:6379/0 mloc serve",
    "REDIS_URL=redis://:PASSWORD@redis:6379/0 MLOC_TOKEN=... mloc serve --host 0.0.0.0 --port 8000",
)
BRIDGE_EXAMPLES = examples("REDIS_URL=redis://redis:6379/0 PREFECT_API_URL=http://prefect:4200/api mloc bridge")
WORKER_EXAMPLES = examples(
    "PREFECT_API_URL=http://prefect:4200/api REDIS_URL=redis://redis:6379/0 mloc worker start",
    "mloc worker start --coordinator-only    # runs that only wait for their stages",
)


def serve(
    *,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Listen on this address; beyond this machine only with token and Redis password.",
        ),
    ] = None,
    port: Annotated[int | None, typer.Option(metavar="PORT", help="Port; default 8000.")] = None,
) -> None:
    """Run the HTTP endpoint alone, on the Redis of REDIS_URL. Any number of them may run on one Redis."""
    from mloc_prefect.cli.service import log_to_stderr
    from mloc_prefect.server.main import run
    from mloc_prefect.settings import get_settings
    from mloc_prefect.up.notify import tell_ready

    settings = get_settings(host=host, port=port)
    log_to_stderr(settings)

    def ready(url: str) -> None:
        print(f"endpoint on {url}", flush=True)
        tell_ready()

    run(settings, on_ready=ready)


def bridge() -> None:
    """Run the bridge alone: it starts submitted runs in Prefect, and keeps records and messages of MLOC up to date.

    Uses the Redis of REDIS_URL and the server of PREFECT_API_URL. Of several bridges on one Redis one is active.
    """
    from mloc_prefect.bridge.main import run_bridge
    from mloc_prefect.cli.service import log_to_stderr, run_until_signalled
    from mloc_prefect.settings import get_settings
    from mloc_prefect.up.notify import tell_ready

    settings = get_settings()
    log_to_stderr(settings)
    run_until_signalled(lambda: run_bridge(settings, on_ready=tell_ready))


def worker_start(
    *,
    pool: Annotated[str | None, typer.Option(metavar="NAME", help="Work pool; default: the setting work_pool.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Most runs at once.")] = None,
    coordinator_only: Annotated[
        bool, typer.Option("--coordinator-only", help="Only runs that wait for their stages; offers no hardware.")
    ] = False,
) -> None:
    """Run a worker for the server of PREFECT_API_URL; with REDIS_URL it is in MLOC's list of workers, too."""
    import asyncio

    from mloc_prefect.cli.service import log_to_stderr
    from mloc_prefect.settings import get_settings
    from mloc_prefect.worker.main import run_worker

    settings = get_settings()
    log_to_stderr(settings)
    asyncio.run(run_worker(settings, pool=pool, limit=limit, coordinator_only=coordinator_only))
