"""Server-sent events (HTML standard, section 9.2): their form, a sign of life now and then, and their end."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from starlette.responses import StreamingResponse

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from mloc_prefect.server.context import Endpoint

KEEP_ALIVE_SECONDS = 15.0
_ALIVE = b": alive\n\n"


def event(data: Any, *, name: str | None = None, id_: str | None = None) -> bytes:
    """Return one event; text stays text, all else becomes JSON on one line."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=True)
    lines = [f"id: {id_}"] if id_ is not None else []
    lines += [f"event: {name}"] if name else []
    # Only these three end a line in this format; others, such as U+2028, are text.
    lines += [f"data: {line}" for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    return ("\n".join(lines) + "\n\n").encode("utf-8", "replace")


def stream(endpoint: Endpoint, events: AsyncGenerator[bytes]) -> StreamingResponse:
    """Return the answer that sends `events` until they end, the client goes, or the process is told to end."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    body = _until_stopped(endpoint.stopping, events)
    return StreamingResponse(body, media_type="text/event-stream; charset=utf-8", headers=headers)


async def _until_stopped(stopping: asyncio.Event, events: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    # A task of their own makes and closes the events: a client that goes away cancels this one in the middle of a wait.
    made: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)
    making = asyncio.create_task(_make(events, made))
    stopped = asyncio.create_task(stopping.wait())
    getting: asyncio.Task[bytes | None] | None = None
    try:
        while True:
            getting = getting or asyncio.create_task(made.get())
            waits: set[asyncio.Task[Any]] = {stopped, getting, making}  # returns at once when one has ended before
            await asyncio.wait(waits, timeout=KEEP_ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                event, getting = getting.result(), None
                if event is None:
                    return
                yield event
            elif stopped.done():
                return
            elif making.done():
                making.result()  # raises what has ended the events; else their end is in the queue
            else:
                yield _ALIVE
    finally:
        tasks = [task for task in (making, stopped, getting) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _make(events: AsyncGenerator[bytes], made: asyncio.Queue[bytes | None]) -> None:
    """Hand over the events, and None at their end."""
    async with aclosing(events):
        async for event in events:
            await made.put(event)
    await made.put(None)
