"""Which Prefect server is meant, whether it answers, and Prefect's own output kept off the screen."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from mloc_prefect.errors import DispatchError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect.client.orchestration import PrefectClient

# Prefect reads these when it is imported; the lines still reach the run's page through the API.
_QUIET = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}
_CANCELLED = "Cancelled by its user."


def configured_api_url() -> str | None:
    """Return the API address of the environment or of the active Prefect profile, or None when neither has one."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url or None


def quiet_prefect() -> None:
    """Keep Prefect's console lines away; call it before Prefect is imported. Variables that are set stay."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def api_of_up(home: Path) -> tuple[str, str | None] | None:
    """Return address and password of the Prefect API that the `mloc up` of `home` runs or uses, or None."""
    from mloc_prefect.up.state import running

    state = running(home)
    if state is None:
        return None
    return state.api_url, Path(state.auth_file).read_text().strip() if state.auth_file else None


@contextmanager
def using_api(url: str | None, auth: str | None = None) -> Iterator[None]:
    """Make `url` the Prefect API of the block, with the password `auth` if it has one."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: url, **({PREFECT_API_AUTH_STRING: auth} if auth else {})}):
        yield


async def reachable(url: str, auth: str | None = None) -> None:
    """Return when the Prefect API at `url` answers.

    Raises:
        DispatchError: It does not.
    """
    from prefect.client.orchestration import get_client

    with using_api(url, auth):
        async with get_client() as client:
            error = await client.api_healthcheck()
    if error is not None:
        hint = "correct PREFECT_API_URL or the Prefect profile; without an address `mloc run` starts its own server"
        raise DispatchError(f"the Prefect server at {url} does not answer: {error or type(error).__name__}", hint=hint)


def run_page(flow_run_id: str) -> str:
    """Return the web page of a run of the API in force."""
    from prefect.utilities.urls import url_for

    return url_for("flow-run", obj_id=UUID(flow_run_id)) or ""


async def mark_cancelled(flow_run_id: str | None) -> None:
    """Make sure that an interrupted run and its stages are Cancelled in Prefect, whatever they ended as before."""
    if flow_run_id is None:
        return
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        for run_id in (UUID(flow_run_id), *await _stage_runs(client, UUID(flow_run_id))):
            await _cancel(client, run_id)


async def _stage_runs(client: PrefectClient, flow_run_id: UUID) -> list[UUID]:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId

    runs = await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[flow_run_id]))
    )
    return [run.id for run in runs]


async def _cancel(client: PrefectClient, run_id: UUID) -> None:
    from prefect.states import Cancelled

    run = await client.read_flow_run(run_id)
    if run.state is None or not run.state.is_final() or run.state.is_crashed():
        await client.set_flow_run_state(run_id, Cancelled(message=_CANCELLED), force=True)
