"""`mloc up`: run everything on one machine with one command."""

from __future__ import annotations

import asyncio
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from mloc_prefect.cli.error_boundary import examples
from mloc_prefect.errors import DispatchError

if TYPE_CHECKING:
    from mloc_prefect.settings import MlocSettings

EXAMPLES = examples(
    "mloc up",
    "mloc up --no-worker                # start workers elsewhere, with `mloc worker start`",
    "mloc up --host 0.0.0.0             # for other machines; creates the secrets that this requires",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL=postgresql+asyncpg://USER:PASSWORD@HOST/DB mloc up --profile ha",
    "REDIS_URL=redis://:PASSWORD@redis:6379/0 PREFECT_API_URL=http://prefect:4200/api mloc up",
)


class Profile(StrEnum):
    """How many of each part run."""

    SINGLE = "single"
    HA = "ha"


def up(
    *,
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Listen on this address; default: this machine only.")
    ] = None,
    port: Annotated[int | None, typer.Option(metavar="PORT", help="Port of the endpoint; default 8000.")] = None,
    no_worker: Annotated[bool, typer.Option("--no-worker", help="Run no stages on this machine.")] = False,
    show_token: Annotated[bool, typer.Option("--show-token", help="Print the token of the endpoint.")] = False,
    profile: Annotated[
        Profile, typer.Option(help="`ha`: every part more than once, Prefect on PostgreSQL; see docs.")
    ] = Profile.SINGLE,
) -> None:
    """Run Valkey, Prefect server, endpoint, bridge and one worker on this machine until Ctrl-C.

    If REDIS_URL or PREFECT_API_URL is set, that server is used instead. State is kept in MLOC_HOME.
    """
    from mloc_prefect.artifacts.private_files import keep_private
    from mloc_prefect.settings import get_settings

    settings = get_settings(host=host, port=port)
    keep_private(settings)
    asyncio.run(_run(settings, worker=not no_worker, show_token=show_token, profile=profile is Profile.HA))


async def _run(settings: MlocSettings, *, worker: bool, show_token: bool, profile: bool) -> None:
    from mloc_prefect.services.up.lifecycle import run_up

    await _take_over_runtime(settings)
    await run_up(settings, worker=worker, show_token=show_token, stream=sys.stdout, profile=profile)


async def _take_over_runtime(settings: MlocSettings) -> None:
    """Stop the local runtime of `mloc run` if its Prefect server would share our database.

    Raises:
        DispatchError: A run uses it.
    """
    from mloc_prefect.services.local_runtime.runtime_client import runtime_status, stop_runtime

    status = await runtime_status(settings) if settings.home.is_dir() else None
    if status is None or not status["server"]:
        return
    if status["users"]:
        raise DispatchError(
            f"a `mloc run` is using the Prefect server of {settings.home}",
            hint="wait until it has ended, or stop it with `mloc down`",
        )
    await stop_runtime(settings)
