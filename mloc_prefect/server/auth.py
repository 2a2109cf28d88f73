"""The bearer token, and the protection of an endpoint without one. [protocol 1.1]."""

from __future__ import annotations

import hmac
import json
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from mloc_prefect.process.exposure import is_loopback
from mloc_prefect.server.request_body import is_json, json_problem, read_body
from mloc_prefect.server.responses import ErrorResponse

if TYPE_CHECKING:
    from mloc_prefect.settings import MlocSettings

_PREFIX = "Bearer "
_PARSED = 64 * 1024  # bytes of a body that is parsed for a caller without a token


class BearerToken(HTTPBearer):
    """The token check as a security scheme, which the OpenAPI document shows."""

    def __init__(self) -> None:
        super().__init__(
            scheme_name="token", description="The value of `ORCHESTRATOR_TOKEN`; not needed if none is configured."
        )

    async def __call__(self, request: Request) -> None:  # type: ignore[override]  # the credentials are not used
        """Accept requests with the token; if none is configured, requests for our own names from our own pages.

        Raises:
            ErrorResponse: 401 without a bearer token, 403 for a wrong one, or for a request that a browser may have
                been tricked into sending to an endpoint without a token. The original parses JSON before it checks the
                token, so broken JSON is 422 with any token; without a valid token only small bodies are parsed.
        """
        settings: MlocSettings = request.app.state.endpoint.settings
        token = settings.token
        if token is None or not token.get_secret_value():
            _refuse_other_names(request, settings)
            _refuse_other_sites(request)
            return
        # As strict as the original: one space, exact case. Trailing whitespace is not part of a header value.
        given = (request.headers.get("authorization") or "").rstrip(" \t")
        wanted = f"{_PREFIX}{token.get_secret_value()}"
        if hmac.compare_digest(given.encode("latin-1", "replace"), wanted.encode()):
            return
        await _refuse_broken_json(request)
        if not given.startswith(_PREFIX):
            raise ErrorResponse(401, "Missing bearer token")
        raise ErrorResponse(403, "Invalid token")


Guarded = Depends(BearerToken())
"""The dependency of every route except the probes."""


def _refuse_other_names(request: Request, settings: MlocSettings) -> None:
    """Refuse requests for foreign host names, which protects an endpoint without a token from DNS rebinding.

    A page whose name resolves to the loopback address would otherwise pass for one of ours. The address to listen on
    and the host of the URL for workers count as our own names.
    """
    given = request.headers.get("host") or ""
    name = _name(f"//{given}")
    ours = {_name(settings.base_url or ""), (settings.host or "").lower().rstrip(".")} - {""}
    if not given or is_loopback(name) or name in ours:
        return
    raise ErrorResponse(
        403,
        f"without a token this endpoint answers to localhost only, not to {given[:100]}: "
        "set ORCHESTRATOR_TOKEN, or set ORCHESTRATOR_BASE_URL to the URL at which it is reached",
    )


def _name(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _refuse_other_sites(request: Request) -> None:
    """Refuse a POST from a page of another site: the user's browser can reach the loopback address."""
    origin = request.headers.get("origin")
    if request.method == "POST" and origin and origin.partition("://")[2] != request.headers.get("host"):
        raise ErrorResponse(403, f"a page of {origin[:100]} may not post here; set a token to allow other sites")


async def _refuse_broken_json(request: Request) -> None:
    parsed_first = request.method == "POST" and request.url.path in {"/api/v1/tasks", "/api/v1/results"}
    if not parsed_first or not is_json(request):
        return
    if int(request.headers.get("content-length") or 0) > _PARSED:
        return
    body = await read_body(request, _PARSED, what="a body without a token")
    try:
        if body:
            json.loads(body)
    except (ValueError, RecursionError) as error:
        raise json_problem(error) from None
