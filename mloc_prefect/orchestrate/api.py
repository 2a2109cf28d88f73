"""Requests to Prefect's API for which its client has no method, or one that does more than is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import httpx
from prefect.exceptions import PrefectHTTPStatusError

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

Method = Literal["GET", "POST", "PATCH", "DELETE"]

REFUSED = frozenset({httpx.codes.NOT_FOUND, httpx.codes.CONFLICT})
"""Answers that are facts and no failures: there is no such thing, or there is one already."""


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
        response = await client.request(method, route, json=body)
    except PrefectHTTPStatusError as error:
        if error.response.status_code in REFUSED:
            return None
        raise
    return response.json() if response.content else {}
