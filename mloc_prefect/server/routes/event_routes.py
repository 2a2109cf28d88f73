"""`GET /api/v1/events`: the messages of the three channels as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.responses import Response, StreamingResponse

from mloc_prefect.server import examples
from mloc_prefect.server.auth import Guarded
from mloc_prefect.server.dependencies import EndpointContext, Here
from mloc_prefect.server.responses import ErrorResponse
from mloc_prefect.server.streams import sse
from mloc_prefect.server.streams.message_feed import CHANNELS, LostBehindError

router = APIRouter(prefix="/api/v1/events", dependencies=[Guarded], tags=["events"])


@router.get(
    "",
    summary="Subscribe to messages",
    response_class=StreamingResponse,  # the OpenAPI document must not promise JSON
    responses=examples.answers(examples.EVENT, 400, 401, 403, 422, 503, media="text/event-stream"),
)
async def events(
    endpoint: Here,
    *,
    channel: Annotated[list[str] | None, Query(description="`tasks`, `tasks.events`, `workers.events`.")] = None,
    task_id: Annotated[str | None, Query(description="Only messages about this task.")] = None,
    last_event_id: Annotated[str | None, Header(description="Continue after this event.")] = None,
) -> Response:
    """Send every new message as an event with the name of its channel.

    A client that reconnects with `Last-Event-ID` gets missed messages, as long as this process still has them. An
    event `behind` says that the client read too slowly and that messages are missing; the stream then ends.
    """
    wanted = set(channel or CHANNELS)
    unknown = sorted(wanted - {*CHANNELS})
    if unknown:
        raise ErrorResponse(400, f"channel {unknown[0]!r} is not one of {', '.join(CHANNELS)}")
    await endpoint.feed.open()
    return sse.stream(endpoint, _events(endpoint, wanted, task_id, last_event_id))


async def _events(
    endpoint: EndpointContext, channels: set[str], task_id: str | None, last_id: str | None
) -> AsyncGenerator[bytes]:
    with endpoint.feed.reader(last_id) as messages:
        yield b": listening\n\n"
        try:
            async for heard in messages:
                if heard.channel in channels and task_id in {None, heard.message.get("task_id")}:
                    yield sse.event(heard.message, name=heard.channel, id_=endpoint.feed.id_of(heard))
        except LostBehindError:
            yield sse.event({"detail": "too slow: messages are missing"}, name="behind")
