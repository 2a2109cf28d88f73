"""`mloc up`: everything on one machine with one command."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mloc_prefect.cli.boundary import examples
from mloc_prefect.errors import DispatchError

if TYPE_CHECKING:
    from mloc_prefect.settings import MlocSettings

EXAMPLES = examples(
    "mloc up",
    "mloc up --no-worker                # start workers elsewhere, with `mloc worker start`",
    "mloc up --host 0.0.0.0             # for other machines; makes the secrets that this needs",
    "REDIS_URL=redis://:PASSWORD@redis:6379/0 PREFECT_API_URL=http://prefect:4200/api mloc up",
)


def up(
    *,
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Listen on this address; default: this machine only.")
    ] = None,
    port: Annotated[int | None, typer.Option(metavar="PORT", help="Port of the endpoint; default 8000.")] = None,
    no_worker: Annotated[bool, typer.Option("--no-worker", help="Run no stages on this machine.")] = False,
    show_token: Annotated[bool, typer.Option("--show-token", help="Print the token of the endpoint.")] = False,
) -> None:
    """Run Valkey, Prefect server, endpoint, bridge and one worker here, until Ctrl-C.

    REDIS_URL and PREFECT_API_URL name servers to use instead of own ones. State is kept in MLOC_HOME.
    """
    from mloc_prefect.settings import get_settings

    settings = get_settings(host=host, port=port)
    asyncio.run(_run(settings, worker=not no_worker, show_token=show_token))


async def _run(settings: MlocSettings, *, worker: bool, show_token: bool) -> None:
    from mloc_prefect.up.run import run_up

    await _take_over_runtime(settings)
    await run_up(settings, worker=worker, show_token=show_token, stream=sys.stdout)


async def _take_over_runtime(settings: MlocSettings) -> None:
    """End the local runtime of `mloc run` when its Prefect server would share our database.

    Raises:
        DispatchError: A run uses it.
    """
    from mloc_prefect.orchestrate.runtime_client import runtime_status, stop_runtime

    status = await runtime_status(settings) if settings.home.is_dir() else None
    if status is None or not status["server"]:
        return
    if status["users"]:
        raise DispatchError(
            f"a `mloc run` uses the Prefect server of {settings.home} at the moment",
            hint="wait until it has ended, or end it with `mloc down`",
        )
    await stop_runtime(settings)
