"""Requests to Prefect's API for which its client has no method, or one that does more than needed."""

from __future__ import annotations

import asyncio
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import httpx
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import get_current_settings

from mloc_prefect.errors import DispatchError, reason

if TYPE_CHECKING:
    from datetime import datetime

    from prefect.client.orchestration import PrefectClient

T = TypeVar("T")
Method = Literal["GET", "POST", "PATCH", "DELETE"]

LOGIN_HINT = "set PREFECT_API_AUTH_STRING to its user:password"
_NO_LOGIN = frozenset({httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN})
REFUSED = frozenset({httpx.codes.NOT_FOUND, httpx.codes.CONFLICT})
"""Answers that are no failures: the object does not exist, or exists already."""


def current_api_url() -> str | None:
    """Return the URL of Prefect's API that is used here, or None."""
    return get_current_settings().api.url or None


def server_refusal(url: str, error: httpx.HTTPError) -> DispatchError:
    """Return what to tell a user whose command cannot use the Prefect server at `url`."""
    if isinstance(error, httpx.HTTPStatusError) and error.response.status_code in _NO_LOGIN:
        return DispatchError(f"the Prefect server at {url} wants another login", hint=LOGIN_HINT)
    return DispatchError(f"the Prefect server at {url} cannot be used: {reason(error)}")


async def late_answer(request: asyncio.Future[T], seconds: float) -> T | None:
    """Return the answer to a request whose sender was cancelled; None if it failed or did not come within `seconds`.

    The server may carry out a request although nobody waits for its answer any more.
    """
    await asyncio.wait({request}, timeout=seconds)
    request.cancel()  # it waits for a time, or for a server that is away
    if not request.done() or request.cancelled() or request.exception() is not None:
        return None
    return request.result()


def storable(value: Any) -> Any:
    """Return JSON that any database of Prefect can store: PostgreSQL refuses NUL characters in texts.

    A refused text would look like an outage: Prefect answers 503 to every error of its database.
    """
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    if isinstance(value, list | tuple):
        return [storable(item) for item in value]
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    return value


async def ask(client: PrefectClient, method: Method, path: str, body: Any = None) -> Any:
    """Send a request.

    Args:
        client: Open client, whose retries apply.
        method: HTTP method.
        path: Path below the API's URL.
        body: JSON body, or None.

    Returns:
        The answer, `{}` when it is empty, or None for one of `REFUSED`.

    Raises:
        httpx.HTTPError: No answer, or another refusal.
    """
    route: Any = path  # annotated as one of the routes of the server, without values
    try:
        response = await client.request(method, route, json=storable(body))
    except PrefectHTTPStatusError as error:
        if error.response.status_code in REFUSED:
            return None
        raise
    return response.json() if response.content else {}


async def server_time(client: PrefectClient) -> datetime | None:
    """Return the time of the server's clock, in whole seconds; None if something between us leaves it out.

    Raises:
        httpx.HTTPError: No answer, or a refusal.
    """
    response = await client.request("GET", "/health")
    date = response.headers.get("date")
    return parsedate_to_datetime(date) if date else None
