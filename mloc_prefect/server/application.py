"""The ASGI application: routes, error answers, lifetime."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from mloc_prefect.errors import MlocError
from mloc_prefect.server.counters import CountAnswers, Counters
from mloc_prefect.server.dependencies import EndpointContext
from mloc_prefect.server.responses import ErrorResponse, JsonResponse, error_answer
from mloc_prefect.server.routes import (
    event_routes,
    file_routes,
    health_routes,
    log_routes,
    result_routes,
    task_routes,
    worker_routes,
)
from mloc_prefect.server.streams.message_feed import MessageFeed
from mloc_prefect.server.worker_cache import WorkerCache
from mloc_prefect.version import __version__

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response

    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.store.backends import Stores

_log = logging.getLogger(__name__)
_DESCRIPTION = """\
Accepts MLOC task YAML, runs it as Prefect flows, and returns the results.

Everything under *tasks*, *results* and *workers* is MLOC's own interface; clients of both generations find the fields
that they know.
"""


def create_app(stores: Stores, settings: MlocSettings) -> FastAPI:
    """Return the ASGI application.

    Args:
        stores: Records, registry, journal and messages; the caller closes them.
        settings: The settings (token, results root, limits).
    """
    endpoint = EndpointContext(
        settings=settings,
        stores=stores,
        fleet=WorkerCache(stores.workers),
        feed=MessageFeed(stores.publisher),
        counters=Counters(),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        yield
        endpoint.stopping.set()
        await endpoint.feed.close()

    app = FastAPI(title="MLOC orchestrator", version=__version__, description=_DESCRIPTION, lifespan=lifespan)
    app.state.endpoint = endpoint
    for routes in (
        task_routes,
        result_routes,
        file_routes,
        log_routes,
        event_routes,
        worker_routes,
        health_routes,
    ):  # the busiest routes are matched first
        app.include_router(routes.router)
    app.add_exception_handler(HTTPException, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(MlocError, _refused)
    app.add_middleware(CountAnswers, counters=endpoint.counters)
    return app


async def _problem(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, HTTPException)
    return error_answer(error)


async def _invalid(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, RequestValidationError)
    entries = [{key: row[key] for key in ("type", "loc", "msg", "input") if key in row} for row in error.errors()]
    return error_answer(ErrorResponse(422, entries))


async def _refused(request: Request, error: Exception) -> Response:
    """Answer an `MlocError`: its class decides the status, its message is for the client."""
    assert isinstance(error, MlocError)
    if error.http_status >= 500:
        _log.warning("%s %s: %s", request.method, request.url.path, error.message)
    detail = f"{error.message}; {error.hint}" if error.hint else error.message
    headers = {"Retry-After": "2"} if error.http_status == 503 else {}
    return JsonResponse({"detail": detail}, error.http_status, headers=headers)
