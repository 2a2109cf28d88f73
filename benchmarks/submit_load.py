"""Sends submissions over kept connections, one process: `python benchmarks/submit_load.py OPTIONS-AS-JSON`.

Options: `ports`, `connections`, `seconds`, `texts` (bodies, in turn) and `rate`: submissions a second at even
distances, whatever the answers do, with latency counted from the moment at which a submission was due; or null: each
connection sends the next one as soon as it has its answer. Prints one JSON object: `answers` within the time,
`accepted` (those on their way at the end, too), `seconds`, `failures` (other answers than 200), `unsent` (due, but all
connections were busy until the end) and `latencies` (seconds, sorted).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from itertools import cycle

import uvloop


class Connection(asyncio.Protocol):
    """One connection: one request at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._due = 0.0
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport) -> None:
        """Be free."""
        self._transport = transport
        self._load.idle(self)

    def send(self, request: bytes, due: float) -> None:
        """Send a request that was due at a moment."""
        self._due = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Take an answer when it is complete."""
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        at = head.lower().find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(body) >= length:
            self._buffer = b""
            self._load.answered(self, head[9:12] == b"200", time.perf_counter() - self._due)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it."""
        self._load.lost(self)


class Load:
    """What is to be sent, and what came back."""

    def __init__(self, texts: list[str], rate: float | None, seconds: float) -> None:
        self.requests = cycle([request(text.encode()) for text in texts])
        self.rate, self.seconds = rate, seconds
        self.latencies: list[float] = []
        self.failures = 0
        self.free: deque[Connection] = deque()
        self.queue: deque[float] = deque()
        self.running = False
        self.open = 0

    def idle(self, connection: Connection) -> None:
        """Take up a new connection."""
        self.open += 1
        self.free.append(connection)

    def lost(self, connection: Connection) -> None:
        """A server that closes a connection while it is loaded has failed."""
        self.open -= 1
        self.failures += self.running

    def answered(self, connection: Connection, good: bool, seconds: float) -> None:
        """Note an answer and send the next submission."""
        if good:
            self.latencies.append(seconds)
        else:
            self.failures += 1
        self.free.append(connection)
        self.next()

    def next(self) -> None:
        """Send what is due on connections that are free."""
        while self.running and self.free and (self.rate is None or self.queue):
            due = self.queue.popleft() if self.rate else time.perf_counter()
            self.free.popleft().send(next(self.requests), due)

    async def run(self) -> dict:
        """Send for the given time; returns what is printed."""
        self.running = True
        start = time.perf_counter()
        self.next()
        sent = 0
        while (now := time.perf_counter() - start) < self.seconds:
            if self.rate is None:
                await asyncio.sleep(min(0.05, self.seconds - now))
                continue
            while sent < now * self.rate:
                self.queue.append(start + sent / self.rate)
                sent += 1
            self.next()
            await asyncio.sleep(max(0.0, start + sent / self.rate - time.perf_counter()))
        elapsed = time.perf_counter() - start
        unsent, self.running = len(self.queue), False
        answers = len(self.latencies)
        while len(self.free) < self.open:  # those on their way still count for latency, not for the rate
            await asyncio.sleep(0.01)
        return {
            "answers": answers,
            "seconds": elapsed,
            "failures": self.failures,
            "unsent": unsent,
            "accepted": len(self.latencies),
            "latencies": sorted(self.latencies),
        }


def request(body: bytes) -> bytes:
    """Return a submission as `curl --data-binary` sends it."""
    head = (
        "POST /api/v1/tasks HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n"
        f"Content-Type: text/yaml\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def main() -> None:
    options = json.loads(sys.argv[1])
    load = Load(options["texts"], options["rate"], options["seconds"])
    loop = asyncio.get_running_loop()
    ports = options["ports"]
    for number in range(options["connections"]):
        await loop.create_connection(lambda: Connection(load), "127.0.0.1", ports[number % len(ports)])
    print(json.dumps(await load.run()))


if __name__ == "__main__":
    uvloop.run(main())
