"""`mloc serve`, `mloc bridge` and `mloc worker start`: single parts of `mloc up`, with the user's Redis and Prefect."""

from __future__ import annotations

from typing import Annotated

import typer

from mloc_prefect.cli.error_boundary import examples

SERVE_EXAMPLES = examples(
    "REDIS_URL=redis://redis:6379/0 mloc serve",
    "REDIS_URL=redis://:PASSWORD@redis:6379/0 MLOC_TOKEN=... mloc serve --host 0.0.0.0 --port 8000",
)
BRIDGE_EXAMPLES = examples("REDIS_URL=redis://redis:6379/0 PREFECT_API_URL=http://prefect:4200/api mloc bridge")
WORKER_EXAMPLES = examples(
    "PREFECT_API_URL=http://prefect:4200/api REDIS_URL=redis://redis:6379/0 mloc worker start",
    "mloc worker start --coordinator-only    # only workflow runs, no stages",
)


def serve(
    *,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Listen on this address; other machines require a token and a Redis password.",
        ),
    ] = None,
    port: Annotated[int | None, typer.Option(metavar="PORT", help="Port; default 8000.")] = None,
) -> None:
    """Run the HTTP endpoint alone, with the Redis of REDIS_URL. Any number of endpoints may share a Redis."""
    from mloc_prefect.artifacts.private_files import keep_private
    from mloc_prefect.cli.service_command import log_to_stderr
    from mloc_prefect.process.notify import report_ready
    from mloc_prefect.server.main import run
    from mloc_prefect.settings import get_settings

    settings = get_settings(host=host, port=port)
    log_to_stderr(settings)
    keep_private(settings)

    def ready(url: str) -> None:
        print(f"endpoint on {url}", flush=True)
        report_ready()

    run(settings, on_ready=ready)


def bridge() -> None:
    """Run the bridge alone. It starts submitted runs in Prefect and keeps MLOC's records and messages up to date.

    Uses the Redis of REDIS_URL and the server of PREFECT_API_URL. Of several bridges on one Redis, one is active.
    """
    from mloc_prefect.artifacts.private_files import keep_private
    from mloc_prefect.cli.prefect_api import lend_own_login
    from mloc_prefect.cli.service_command import log_to_stderr, run_until_signalled
    from mloc_prefect.process.notify import report_ready
    from mloc_prefect.settings import get_settings

    settings = get_settings()
    log_to_stderr(settings)
    keep_private(settings)
    lend_own_login(settings.home)
    from mloc_prefect.bridge.main import run_bridge  # after the login: it imports Prefect

    run_until_signalled(lambda: run_bridge(settings, on_ready=report_ready))


def worker_start(
    *,
    pool: Annotated[str | None, typer.Option(metavar="NAME", help="Work pool; default: the setting work_pool.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Maximum number of runs at once.")] = None,
    coordinator_only: Annotated[
        bool, typer.Option("--coordinator-only", help="Run only workflow runs, no stages; offer no hardware.")
    ] = False,
) -> None:
    """Run a worker for the server of PREFECT_API_URL. With REDIS_URL it also appears in MLOC's list of workers."""
    import asyncio

    from mloc_prefect.artifacts.private_files import keep_private
    from mloc_prefect.cli.prefect_api import lend_own_login
    from mloc_prefect.cli.service_command import log_to_stderr
    from mloc_prefect.settings import get_settings

    settings = get_settings()
    log_to_stderr(settings)
    keep_private(settings)
    lend_own_login(settings.home)
    from mloc_prefect.worker.main import run_worker  # after the login: it may import Prefect

    asyncio.run(run_worker(settings, pool=pool, limit=limit, coordinator_only=coordinator_only))
