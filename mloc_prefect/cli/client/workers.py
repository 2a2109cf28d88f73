"""Where `mloc workers` finds the workers: at the endpoint, or in Prefect on a site without one."""

from __future__ import annotations

from typing import Any

from mloc_prefect.errors import DispatchError


def find_workers() -> list[dict[str, Any]]:
    """Return the workers as `GET /workers` does.

    Raises:
        DispatchError: Neither an endpoint nor a Prefect server answers.
    """
    from mloc_prefect.cli.client.endpoint import Endpoint
    from mloc_prefect.settings import get_settings

    settings = get_settings()
    try:
        with Endpoint.configured(settings) as endpoint:
            found: list[dict[str, Any]] = endpoint.get("/workers")
            return found
    except DispatchError:
        in_prefect = None if "url" in settings.model_fields_set else _in_prefect()
        if in_prefect is None:
            raise
        return in_prefect


def _in_prefect() -> list[dict[str, Any]] | None:
    """Return the workers that the Prefect server knows, or None when none is configured.

    Raises:
        DispatchError: It does not answer.
    """
    from mloc_prefect.cli.prefect_api import configured_api_url, quiet_prefect

    quiet_prefect()
    url = configured_api_url()
    if url is None:
        return None
    import asyncio

    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    from mloc_prefect.worker.roster import listed

    async def ask() -> list[dict[str, Any]]:
        async with get_client() as client:
            return await listed(client)

    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            return asyncio.run(ask())
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise DispatchError(f"no endpoint is configured, and the Prefect server at {url}: {reason}") from None
