"""The bearer token. [protocol 1.1]."""

from __future__ import annotations

import hmac
import json
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from mloc_prefect.bridge.exposure import is_loopback
from mloc_prefect.server.body import is_json, json_problem, read_body
from mloc_prefect.server.replies import Problem

if TYPE_CHECKING:
    from mloc_prefect.settings import MlocSettings

_PREFIX = "Bearer "
_LOOKED_AT = 64 * 1024  # bytes of a body that a caller without token may have parsed


class BearerToken(HTTPBearer):
    """The check as a security scheme: one dependency that the OpenAPI document shows, too."""

    def __init__(self) -> None:
        super().__init__(
            scheme_name="token", description="The value of `ORCHESTRATOR_TOKEN`; none is asked for without."
        )

    async def __call__(self, request: Request) -> None:  # type: ignore[override]  # nobody needs the credentials
        """Let a request pass that has the token; without a configured token every one passes.

        Raises:
            Problem: 401 without a bearer token, 403 for a wrong one, or for what a browser may have been led to send to
                an endpoint without one. The original parses JSON before it looks at the
                token, so broken JSON is 422 with any token; of strangers only small bodies are parsed.
        """
        settings: MlocSettings = request.app.state.endpoint.settings
        token = settings.token
        if token is None or not token.get_secret_value():
            _refuse_other_names(request, settings)
            _refuse_other_sites(request)
            return
        # Strict as the original: one blank, this very case; white space at the end is no part of a header's value.
        given = (request.headers.get("authorization") or "").rstrip(" \t")
        wanted = f"{_PREFIX}{token.get_secret_value()}"
        if hmac.compare_digest(given.encode("latin-1", "replace"), wanted.encode()):
            return
        await _refuse_broken_json(request)
        if not given.startswith(_PREFIX):
            raise Problem(401, "Missing bearer token")
        raise Problem(403, "Invalid token")


Guarded = Depends(BearerToken())
"""The dependency of every route but the probes."""


def _refuse_other_names(request: Request, settings: MlocSettings) -> None:
    """Without a token a foreign name that leads to the loopback address may belong to a page that a browser shows.

    Such a page passes for one of ours ("DNS rebinding"). The name to listen on, and that of the URL by which workers
    come, are ours, too.
    """
    given = request.headers.get("host") or ""
    name = _name(f"//{given}")
    ours = {_name(settings.base_url or ""), (settings.host or "").lower().rstrip(".")} - {""}
    if not given or is_loopback(name) or name in ours:
        return
    raise Problem(
        403,
        f"without a token this endpoint goes by localhost only, not by {given[:100]}: "
        "set ORCHESTRATOR_TOKEN, or ORCHESTRATOR_BASE_URL to the URL by which it is reached",
    )


def _name(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _refuse_other_sites(request: Request) -> None:
    """Without a token the loopback address is the guard, and a page in the user's browser stands behind it."""
    origin = request.headers.get("origin")
    if request.method == "POST" and origin and origin.partition("://")[2] != request.headers.get("host"):
        raise Problem(403, f"a page of {origin[:100]} may not post here; set a token to allow other sites")


async def _refuse_broken_json(request: Request) -> None:
    parsed_first = request.method == "POST" and request.url.path in {"/api/v1/tasks", "/api/v1/results"}
    if not parsed_first or not is_json(request):
        return
    if int(request.headers.get("content-length") or 0) > _LOOKED_AT:
        return
    body = await read_body(request, _LOOKED_AT, what="a body without a token")
    try:
        if body:
            json.loads(body)
    except (ValueError, RecursionError) as error:
        raise json_problem(error) from None
