"""The application: routes, error answers, life time."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from mloc_prefect import __version__
from mloc_prefect.errors import MlocError
from mloc_prefect.server.context import Endpoint
from mloc_prefect.server.counters import CountAnswers, Counters
from mloc_prefect.server.feed import Feed
from mloc_prefect.server.fleet import Fleet
from mloc_prefect.server.masking import Masker
from mloc_prefect.server.replies import Json, Problem, error_answer
from mloc_prefect.server.routes import events, files, health, logs, results, tasks, workers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response

    from mloc_prefect.bridge.stores import Stores
    from mloc_prefect.settings import MlocSettings

_log = logging.getLogger(__name__)
_DESCRIPTION = """\
Takes MLOC task YAML, runs it as Prefect flows, and gives the results back.

Everything under *tasks*, *results* and *workers* is MLOC's own interface; clients of either generation find the fields
that they know.
"""


def create_app(stores: Stores, settings: MlocSettings) -> FastAPI:
    """Return the ASGI application.

    Args:
        stores: Where records, registry, journal and messages live; closed by whoever opened them.
        settings: Settings in force (token, results root, limits).
    """
    endpoint = Endpoint(
        settings=settings,
        stores=stores,
        fleet=Fleet(stores.workers),
        feed=Feed(stores.publisher),
        masker=Masker(),
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
    for routes in (tasks, results, files, logs, events, workers, health):  # the busiest is found first
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
    return error_answer(Problem(422, entries))


async def _refused(request: Request, error: Exception) -> Response:
    """Answer an error of ours: the status is that of its class, the text is for the client."""
    assert isinstance(error, MlocError)
    if error.http_status >= 500:
        _log.warning("%s %s: %s", request.method, request.url.path, error.message)
    detail = f"{error.message}; {error.hint}" if error.hint else error.message
    headers = {"Retry-After": "2"} if error.http_status == 503 else {}
    return Json({"detail": detail}, error.http_status, headers=headers)
