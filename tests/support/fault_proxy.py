"""A proxy in front of a Prefect server that answers chosen requests with 500, or closes the connection."""

from __future__ import annotations

import asyncio
import re
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


@dataclass(frozen=True, slots=True)
class Fault:
    """What one request meets.

    Attributes:
        request: Method and route, with `ID` for each id.
        kind: `500` before the server sees it, `unavailable` (503) before it, `closed` before it, or `lost`: the server
            has done it, and the answer is lost.
    """

    request: str
    kind: str


@dataclass(slots=True)
class FaultProxy:
    """The proxy.

    Attributes:
        url: Its URL, as `PREFECT_API_URL`.
        asked: Requests that came, as in `Fault`.
        faults: What the next request of each kind meets; each is met once.
        met: Those that were met.
    """

    url: str = ""
    asked: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    met: list[Fault] = field(default_factory=list)

    def take(self, request: str) -> Fault | None:
        """Return what a request meets, if anything."""
        self.asked.append(request)
        found = next((fault for fault in self.faults if fault.request == request), None)
        if found is not None:
            self.faults.remove(found)
            self.met.append(found)
        return found


@contextmanager
def fault_proxy(api_url: str) -> Iterator[FaultProxy]:
    """Run a proxy of the API at `api_url` until the block ends."""
    parts, proxy = urlsplit(api_url), FaultProxy()
    assert parts.hostname is not None
    target = parts.hostname, parts.port or 80
    loop, ready = asyncio.new_event_loop(), threading.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await _answer(proxy, target, reader, writer)
        writer.close()

    async def start() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{parts.path}"
        ready.set()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.create_task(start())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


async def _answer(
    proxy: FaultProxy, target: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answer one request, on a connection of its own; a websocket lives as long as both sides want."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, _, rest = head.partition(b"\r\n")
    method, path, _version = first.decode().split(" ")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    body = await reader.readexactly(int(length[1])) if length else b""
    upgrade = re.search(rb"(?i)\r\nupgrade:", head) is not None
    route = _ID.sub("ID", urlsplit(path).path.removeprefix("/api"))
    fault = None if upgrade else proxy.take(f"{method} {route}")
    if fault is not None and fault.kind in {"500", "unavailable"}:
        status = b"500 Internal Server Error" if fault.kind == "500" else b"503 Service Unavailable"
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        await writer.drain()
        return
    if fault is not None and fault.kind == "closed":
        return
    there, back = await asyncio.open_connection(*target)
    try:
        if not upgrade:
            rest = re.sub(rb"(?i)(^|\r\n)connection: [^\r]*", rb"", rest)
            first += b"\r\nConnection: close"
        back.write(first + b"\r\n" + rest.removeprefix(b"\r\n") + body)
        sides = [_pump(there, writer if fault is None else None)]
        if upgrade:
            sides.append(_pump(reader, back))
        tasks = [asyncio.ensure_future(side) for side in sides]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
    finally:
        back.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter | None) -> None:
    while data := await source.read(1 << 16):
        if sink is not None:
            sink.write(data)
            await sink.drain()
