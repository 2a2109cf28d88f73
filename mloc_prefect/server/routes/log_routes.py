"""`GET /api/v1/tasks/{task_id}/logs`: the log of a task, as text or followed as events."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from mloc_prefect.server import examples
from mloc_prefect.server.auth import Guarded
from mloc_prefect.server.dependencies import Here
from mloc_prefect.server.files.task_files import directory_of
from mloc_prefect.server.responses import ErrorResponse
from mloc_prefect.server.streams import sse, task_log

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
    response_class=StreamingResponse,  # the OpenAPI document must not promise JSON
    responses=_ANSWERS,
)
async def read_logs(
    task_id: str,
    request: Request,
    endpoint: Here,
    *,
    tail: Annotated[int | None, Query(ge=0, le=100_000, description="Return only the last lines.")] = None,
    follow: Annotated[bool, Query(description="Send server-sent events until the task has ended.")] = False,
    last_event_id: Annotated[str | None, Header(description="Continue after this event.")] = None,
) -> Response:
    """Return the log of a task as text, or follow it: one event per line, then an event `end` with the final status.

    The id of an event is the position in the log after its line, so a client that reconnects with `Last-Event-ID`
    misses nothing, at any endpoint process.
    """
    path = task_log.log_file(directory_of(endpoint.results, task_id))
    task_id = task_id.strip()
    if await endpoint.stores.tasks.get(task_id) is None and not await asyncio.to_thread(task_log.is_there, path):
        raise ErrorResponse(404, "task not found")
    start = await asyncio.to_thread(task_log.start_of_tail, path, tail) if tail is not None else 0
    if not (follow or "text/event-stream" in request.headers.get("accept", "")):
        return StreamingResponse(task_log.pieces(path, start), media_type="text/plain; charset=utf-8")
    if last_event_id is not None and last_event_id.isascii() and last_event_id.isdigit():
        start = int(last_event_id[:18])

    async def status() -> tuple[str, bool]:
        record = await endpoint.stores.tasks.get(task_id)
        return (str(record.status), record.mark.phase.terminal) if record else ("UNKNOWN", True)

    return sse.stream(endpoint, task_log.follow(path, start, status))
