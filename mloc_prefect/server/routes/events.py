"""`GET /api/v1/events`: the messages of the three channels as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.responses import Response, StreamingResponse

from mloc_prefect.server import examples, sse
from mloc_prefect.server.auth import Guarded
from mloc_prefect.server.context import Endpoint, Here
from mloc_prefect.server.feed import CHANNELS, LostBehindError
from mloc_prefect.server.replies import Problem

router = APIRouter(prefix="/api/v1/events", dependencies=[Guarded], tags=["events"])


@router.get(
    "",
    summary="Hear the messages",
    response_class=StreamingResponse,  # no JSON, in the OpenAPI document
    responses=examples.answers(examples.EVENT, 400, 401, 403, 422, 503, media="text/event-stream"),
)
async def events(
    endpoint: Here,
    *,
    channel: Annotated[list[str] | None, Query(description="`tasks`, `tasks.events`, `workers.events`.")] = None,
    task_id: Annotated[str | None, Query(description="Only messages about this task.")] = None,
    last_event_id: Annotated[str | None, Header(description="Go on behind this event.")] = None,
) -> Response:
    """Send every message as an event with the name of its channel, from now on.

    A client that comes back with `Last-Event-ID` gets what it has missed, as long as this process still has it. An
    event `behind` says that the client read too slowly and that messages are missing; the stream then ends.
    """
    wanted = set(channel or CHANNELS)
    unknown = sorted(wanted - {*CHANNELS})
    if unknown:
        raise Problem(400, f"channel {unknown[0]!r} is not one of {', '.join(CHANNELS)}")
    await endpoint.feed.open()
    return sse.stream(endpoint, _events(endpoint, wanted, task_id, last_event_id))


async def _events(
    endpoint: Endpoint, channels: set[str], task_id: str | None, last_id: str | None
) -> AsyncGenerator[bytes]:
    with endpoint.feed.reader(last_id) as messages:
        yield b": listening\n\n"
        try:
            async for heard in messages:
                if heard.channel in channels and task_id in {None, heard.message.get("task_id")}:
                    yield sse.event(heard.message, name=heard.channel, id_=endpoint.feed.id_of(heard))
        except LostBehindError:
            yield sse.event({"detail": "too slow: messages are missing"}, name="behind")
