"""Which Prefect server a command uses, whether it answers, and how Prefect's console output is silenced."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from uuid import UUID

from mloc_prefect.errors import DispatchError, reason
from mloc_prefect.process.proxies import proxy_problem, through

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prefect.client.orchestration import PrefectClient

# Prefect reads these when it is imported. Log lines still reach the page of the run through the API.
_QUIET = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}
_PROXY_HINT = "check the proxy, or add the host to NO_PROXY"
_LOGINS = ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY")
_CANCELLED = "Cancelled by its user."


def configured_api_url() -> str | None:
    """Return the API URL of the environment or of the active Prefect profile, or None."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url or None


def quiet_prefect() -> None:
    """Silence Prefect's console output; call it before Prefect is imported. Variables that are set are kept."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def api_of_up(home: Path) -> tuple[str, str | None] | None:
    """Return URL and login of the Prefect API that the `mloc up` of `home` uses, or None if none runs."""
    from mloc_prefect.services.secret_files import read_login
    from mloc_prefect.services.up.up_state import running

    state = running(home)
    if state is None:
        return None
    return state.api_url, read_login(state.auth_file)


def has_login() -> bool:
    """Return whether Prefect's settings have a login of the API."""
    from prefect.settings import get_current_settings

    api = get_current_settings().api
    return bool(api.auth_string or api.key)


def own_login(url: str | None, home: Path) -> str | None:
    """Return the login of the Prefect server that runs below `home` if `url` names it, else None."""
    from mloc_prefect.prefect_ext.server.embedded import running_at
    from mloc_prefect.process.exposure import is_loopback
    from mloc_prefect.services.secret_files import SecretFiles, read_login

    server = running_at(home) if url else None
    if server is None:
        return None
    parts, own = urlsplit(url or ""), urlsplit(server.api_url)
    is_same_host = parts.hostname == own.hostname or (is_loopback(parts.hostname or "") and is_loopback(server.host))
    file = SecretFiles.below(home).prefect_auth
    return read_login(str(file)) if is_same_host and parts.port == own.port and file.exists() else None


def login_page(home: Path) -> str | None:
    """Return the URL of the file that logs a browser in to our own Prefect server, or None if there is none."""
    from mloc_prefect.services.secret_files import SecretFiles

    file = SecretFiles.below(home).prefect_page
    return file.as_uri() if file.exists() else None


def lend_own_login(home: Path) -> None:
    """Let this process use our own Prefect server if `PREFECT_API_URL` names it without a login.

    Comes before Prefect is imported, which reads the variables then.
    """
    if not any(os.environ.get(name) for name in _LOGINS) and (
        login := own_login(os.environ.get("PREFECT_API_URL"), home)
    ):
        os.environ["PREFECT_API_AUTH_STRING"] = login


async def server_in_use(home: Path) -> tuple[str, str | None]:
    """Return URL and login of the Prefect API that `PREFECT_API_URL`, the profile or a running `mloc up` names.

    Raises:
        DispatchError: None is named, or it does not answer.
    """
    url, auth = configured_api_url(), None
    if url is None and (found := api_of_up(home)) is not None:
        url, auth = found
    if url is None:
        raise DispatchError("no Prefect server is named", hint="set PREFECT_API_URL, or use `mloc up`")
    auth = auth or (None if has_login() else own_login(url, home))
    await reachable(url, auth)
    return url, auth


@contextmanager
def using_api(url: str | None, auth: str | None = None) -> Iterator[None]:
    """Use `url` as the Prefect API inside the block, with the login `auth` if it has one."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: url, **({PREFECT_API_AUTH_STRING: auth} if auth else {})}):
        yield


async def reachable(url: str, auth: str | None = None) -> None:
    """Check that the Prefect API at `url` answers.

    Raises:
        DispatchError: It does not answer, or wants another login.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    from mloc_prefect.prefect_ext.requests import server_refusal

    if (problem := proxy_problem(url)) is not None:
        raise DispatchError(f"the Prefect server at {url} cannot be called: {problem}", hint=_PROXY_HINT)
    with using_api(url, auth):
        async with get_client() as client:
            error = await client.api_healthcheck()
            try:
                if error is None:
                    await client.api_version()  # a probe of health is answered without a login
            except PrefectHTTPStatusError as refusal:
                raise server_refusal(url, refusal) from None
    if error is not None and through(url):
        text = f"the Prefect server at {url} does not answer{through(url)}: {reason(error)}"
        raise DispatchError(text, hint=_PROXY_HINT)
    if error is not None:
        hint = "correct PREFECT_API_URL or the Prefect profile; without a URL, `mloc run` starts its own server"
        raise DispatchError(f"the Prefect server at {url} does not answer: {reason(error)}", hint=hint)


def run_page(flow_run_id: str) -> str:
    """Return the URL of a run in Prefect's web UI."""
    from prefect.utilities.urls import url_for

    return url_for("flow-run", obj_id=UUID(flow_run_id)) or ""


async def mark_cancelled(flow_run_id: str | None) -> None:
    """Set an interrupted run and its stages to Cancelled in Prefect, also those that have crashed."""
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
