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
    stopped = asyncio.create_task(stopping.wait())
    following: asyncio.Task[bytes] | None = None
    async with aclosing(events):
        try:
            while True:
                following = following or asyncio.create_task(anext(events))
                await asyncio.wait(
                    {stopped, following}, timeout=KEEP_ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if following.done():
                    done, following = following, None
                    try:
                        yield done.result()
                    except StopAsyncIteration:
                        return
                elif stopped.done():
                    return
                else:
                    yield _ALIVE
        finally:
            for task in (stopped, following):
                if task is not None:
                    task.cancel()
                    await asyncio.wait([task])
