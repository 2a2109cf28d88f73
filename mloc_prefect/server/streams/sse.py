"""Server-sent events (HTML standard, section 9.2): their format, keep-alive comments, and their end."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from starlette.responses import StreamingResponse

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from mloc_prefect.server.dependencies import EndpointContext

KEEP_ALIVE_SECONDS = 15.0
_ALIVE = b": alive\n\n"


def event(data: Any, *, name: str | None = None, id_: str | None = None) -> bytes:
    """Return one event; text is sent as it is, other data as JSON on one line."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=True)
    lines = [f"id: {id_}"] if id_ is not None else []
    lines += [f"event: {name}"] if name else []
    # Only CRLF, CR and LF end a line in this format; others, such as U+2028, are text.
    lines += [f"data: {line}" for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    return ("\n".join(lines) + "\n\n").encode("utf-8", "replace")


def stream(
    endpoint: EndpointContext, events: AsyncGenerator[bytes], *, keep_alive_seconds: float = KEEP_ALIVE_SECONDS
) -> StreamingResponse:
    """Return the answer that sends `events` until they end, the client disconnects, or the process is stopping."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    body = _until_stopped(endpoint.stopping, events, keep_alive_seconds)
    return StreamingResponse(body, media_type="text/event-stream; charset=utf-8", headers=headers)


async def _until_stopped(
    stopping: asyncio.Event, events: AsyncGenerator[bytes], keep_alive_seconds: float
) -> AsyncIterator[bytes]:
    # A separate task produces and closes the events: a client that disconnects cancels this one during a wait.
    made: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)
    making = asyncio.create_task(_make(events, made))
    stopped = asyncio.create_task(stopping.wait())
    getting: asyncio.Task[bytes | None] | None = None
    try:
        while True:
            getting = getting or asyncio.create_task(made.get())
            waits: set[asyncio.Task[Any]] = {stopped, getting, making}  # returns at once if one has already ended
            await asyncio.wait(waits, timeout=keep_alive_seconds, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                event, getting = getting.result(), None
                if event is None:
                    return
                yield event
            elif stopped.done():
                return
            elif making.done():
                making.result()  # raises the error that ended the events; otherwise their end is in the queue
            else:
                yield _ALIVE
    finally:
        tasks = [task for task in (making, stopped, getting) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _make(events: AsyncGenerator[bytes], made: asyncio.Queue[bytes | None]) -> None:
    """Put the events into the queue, and None at their end."""
    async with aclosing(events):
        async for event in events:
            await made.put(event)
    await made.put(None)
