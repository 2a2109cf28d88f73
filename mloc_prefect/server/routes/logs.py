"""`GET /api/v1/tasks/{task_id}/logs`: what happened to a task, as text or as it happens."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from mloc_prefect.server import examples, logs, sse
from mloc_prefect.server.auth import Guarded
from mloc_prefect.server.context import Here
from mloc_prefect.server.places import directory_of
from mloc_prefect.server.replies import Problem

router = APIRouter(prefix="/api/v1/tasks/{task_id}/logs", dependencies=[Guarded], tags=["tasks"])

_LOG = "2026-01-01T10:00:30.123+00:00 attempt 1 starts\n"
_ANSWERS = examples.answers(_LOG, 400, 401, 403, 404, 422, 503, media="text/plain")
_ANSWERS[200]["content"]["text/event-stream"] = {
    "schema": {"type": "string"},
    "example": 'id: 49\ndata: 2026-01-01T10:00:30.123+00:00 attempt 1\n\nevent: end\ndata: {"status": "DONE"}\n\n',
}


@router.get(
    "",
    summary="Read a log",
    response_class=StreamingResponse,  # no JSON, in the OpenAPI document
    responses=_ANSWERS,
)
async def read_logs(
    task_id: str,
    request: Request,
    endpoint: Here,
    *,
    tail: Annotated[int | None, Query(ge=0, le=100_000, description="Only so many lines from its end.")] = None,
    follow: Annotated[bool, Query(description="Go on with server-sent events until the task has ended.")] = False,
    last_event_id: Annotated[str | None, Header(description="Go on behind this event.")] = None,
) -> Response:
    """Return the log of a task as text, or follow it: one event a line, then an event `end` with the final status.

    The id of an event is the place in the log behind its line, so that a client which comes back with `Last-Event-ID`
    misses nothing, at whichever endpoint process.
    """
    path = logs.log_file(directory_of(endpoint.results, task_id))
    task_id = task_id.strip()
    if await endpoint.stores.tasks.get(task_id) is None and not await asyncio.to_thread(path.is_file):
        raise Problem(404, "task not found")
    start = await asyncio.to_thread(logs.start_of_tail, path, tail) if tail is not None else 0
    if not (follow or "text/event-stream" in request.headers.get("accept", "")):
        return StreamingResponse(logs.pieces(path, start), media_type="text/plain; charset=utf-8")
    if last_event_id is not None and last_event_id.isascii() and last_event_id.isdigit():
        start = int(last_event_id[:18])

    async def status() -> tuple[str, bool]:
        record = await endpoint.stores.tasks.get(task_id)
        return (str(record.status), record.mark.phase.terminal) if record else ("UNKNOWN", True)

    return sse.stream(endpoint, logs.follow(path, start, status))
