"""Finds the workers for `mloc workers`: at the endpoint, or in Prefect if there is no endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.errors import DispatchError

if TYPE_CHECKING:
    from pathlib import Path


def find_workers() -> list[dict[str, Any]]:
    """Return the workers in the form of `GET /workers`.

    Raises:
        DispatchError: Neither an endpoint nor a Prefect server answers.
    """
    from mloc_prefect.client.sync_client import MlocClient
    from mloc_prefect.settings import get_settings

    settings = get_settings()
    try:
        with MlocClient.configured(settings) as endpoint:
            return endpoint.workers()
    except DispatchError:
        in_prefect = None if "url" in settings.model_fields_set else _in_prefect(settings.home)
        if in_prefect is None:
            raise
        return in_prefect


def _in_prefect(home: Path) -> list[dict[str, Any]] | None:
    """Return the workers that the Prefect server knows, or None if no server is configured.

    Raises:
        DispatchError: The server does not answer.
    """
    from mloc_prefect.cli.prefect_api import configured_api_url, lend_own_login, quiet_prefect

    quiet_prefect()
    lend_own_login(home)
    url = configured_api_url()
    if url is None:
        return None
    import asyncio

    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    from mloc_prefect.cluster.worker_artifact import listed
    from mloc_prefect.prefect_ext.requests import server_refusal

    async def ask() -> list[dict[str, Any]]:
        async with get_client() as client:
            return await listed(client)

    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            return asyncio.run(ask())
    except httpx.HTTPError as error:
        refusal = server_refusal(url, error)
        raise DispatchError(f"no endpoint is configured, and {refusal.message}", hint=refusal.hint) from None
