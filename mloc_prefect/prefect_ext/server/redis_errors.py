"""Answers 503 while the Redis of the embedded server is away: Prefect's clients try that again.

Prefect publishes the event of a state change inside the change's transaction. Without Redis the change is rolled back
and stock Prefect answers 500, which its clients take for final: every run that ends in such a second would crash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

_RETRY_AFTER_SECONDS = 2


def answer_503_without_redis(app: FastAPI) -> None:
    """Make the API mounted in Prefect's `app` answer 503 when Redis cannot be reached; call it before it serves."""
    from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError

    api = next(route.app for route in app.routes if getattr(route, "name", None) == "api")  # type: ignore[attr-defined]  # a Mount
    for error in (ConnectionError, TimeoutError, BusyLoadingError):
        api.add_exception_handler(error, _unavailable)


async def _unavailable(request: Request, error: Exception) -> Response:
    from starlette.responses import JSONResponse

    del request, error  # its text may hold the address with a password
    return JSONResponse(
        status_code=503,
        content={"exception_message": "Service Unavailable: the Redis of this server does not answer"},
        headers={"Retry-After": str(_RETRY_AFTER_SECONDS)},
    )
