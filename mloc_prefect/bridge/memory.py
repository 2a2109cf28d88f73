"""In-memory twins of publisher, leases and worker registry: one process, no files, same rules."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mloc_prefect.bridge.ports import Fence

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from mloc_prefect.bridge.ports import Message, Publisher
    from mloc_prefect.bridge.records import WorkerRecord


class MemoryPublisher:
    """Keeps what was published and hands it to subscribers at once."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self._subscribers: list[tuple[str, Callable[[dict[str, Any]], None]]] = []

    def subscribe(self, channel: str, receiver: Callable[[dict[str, Any]], None]) -> None:
        """Call `receiver` with each later message on `channel`."""
        self._subscribers.append((channel, receiver))

    async def publish(self, channel: str, message: Mapping[str, Any]) -> int:
        """Send one message, through JSON as the wire does; returns how many received it."""
        data = json.loads(json.dumps(message))
        self.sent.append((channel, data))
        receivers = [receiver for name, receiver in self._subscribers if name == channel]
        for receiver in receivers:
            receiver(data)
        return len(receivers)

    @asynccontextmanager
    async def listen(self, *channels: str) -> AsyncIterator[AsyncIterator[tuple[str, dict[str, Any]]]]:
        """Hear channels from the moment the context is entered until it is left."""
        heard: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        mine = [(name, lambda data, name=name: heard.put_nowait((name, data))) for name in channels]
        self._subscribers += mine
        try:
            yield _drain(heard)
        finally:
            self._subscribers = [entry for entry in self._subscribers if entry not in mine]


async def _drain(
    heard: asyncio.Queue[tuple[str, dict[str, Any]]],
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    while True:
        yield await heard.get()


class MemoryLeases:
    """Leases in a dictionary.

    Args:
        clock: Seconds, never going back; tests hand in their own.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[str, tuple[str, float]] = {}
        self._numbers: dict[str, int] = {}

    async def acquire(self, name: str, holder: str, *, ttl: float) -> Fence | None:
        """Take the lease for `ttl` seconds, or prolong one's own; None when another holds it."""
        current, deadline = self._held.get(name, ("", 0.0))
        alive = bool(current) and self._clock() < deadline
        if alive and current != holder:
            return None
        if not alive:
            self._numbers[name] = self._numbers.get(name, 0) + 1
        self._held[name] = (holder, self._clock() + ttl)
        return Fence(name, self._numbers[name])

    async def release(self, name: str, holder: str) -> bool:
        """Give it back; returns False when `holder` did not hold it."""
        current, deadline = self._held.get(name, ("", 0.0))
        if current != holder or self._clock() >= deadline:
            return False
        del self._held[name]
        return True

    def valid(self, fence: Fence) -> bool:
        """Return whether no later holder has taken the lease."""
        return self._numbers.get(fence.name, 0) <= fence.number


class MemoryWorkerRegistry:
    """Workers in a dictionary.

    Args:
        clock: Seconds, never going back; tests hand in their own.
        publisher: Where the messages of the steps go.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, publisher: Publisher | None = None) -> None:
        self._clock = clock
        self._publisher = publisher or MemoryPublisher()
        self._workers: dict[str, tuple[WorkerRecord, float]] = {}
        self._disabled: set[str] = set()

    async def register(self, record: WorkerRecord, *, ttl: float, messages: Sequence[Message] = ()) -> None:
        """Add or replace a worker that lives until `ttl` seconds without a heartbeat have passed."""
        self._workers[record.worker_id] = (replace(record, last_seen=_now()), self._clock() + ttl)
        await self._send(messages)

    async def heartbeat(
        self,
        worker_id: str,
        *,
        ttl: float,
        at_work: Mapping[str, Any] | None = None,
        messages: Sequence[Message] = (),
    ) -> bool:
        """Renew a worker, and what it holds and runs where it says so; returns False when it is not registered."""
        if worker_id not in self._workers:
            return False
        record, _ = self._workers[worker_id]
        if at_work is not None:
            record = replace(record, at_work=dict(at_work), cached_models=tuple(at_work["models"]))
        self._workers[worker_id] = (replace(record, last_seen=_now()), self._clock() + ttl)
        await self._send(messages)
        return True

    async def set_status(
        self,
        worker_id: str,
        status: str,
        *,
        extra: Mapping[str, str] | None = None,
        messages: Sequence[Message] = (),
    ) -> bool:
        """Set `status`, and what `extra` says of tasks; returns False when the worker is not registered."""
        if worker_id not in self._workers:
            return False
        record, deadline = self._workers[worker_id]
        tasks = {"task_id": record.running, "last_task": record.last_task, **(extra or {})}
        changed = replace(record, status=status, running=tasks["task_id"], last_task=tasks["last_task"])
        self._workers[worker_id] = (changed, deadline)
        await self._send(messages)
        return True

    async def get(self, worker_id: str) -> WorkerRecord | None:
        """Return one worker, `stale` as of now, or None."""
        if worker_id not in self._workers:
            return None
        record, deadline = self._workers[worker_id]
        return replace(record, stale=self._clock() >= deadline, elastic_disabled=worker_id in self._disabled)

    async def list(self) -> Sequence[WorkerRecord]:
        """Return all workers, `stale` as of now, in order of their ids."""
        found = [await self.get(worker_id) for worker_id in sorted(self._workers)]
        return [record for record in found if record is not None]

    async def set_elastic(self, worker_id: str, *, enabled: bool) -> bool:
        """Say whether a worker gets new work; returns False when it is not there."""
        if worker_id not in self._workers:
            return False
        (self._disabled.discard if enabled else self._disabled.add)(worker_id)
        return True

    async def remove(self, worker_id: str, *, only_stale: bool = False, messages: Sequence[Message] = ()) -> bool:
        """Forget a worker; returns whether it was there (and, where asked for, stale)."""
        record = await self.get(worker_id)
        if record is None or (only_stale and not record.stale):
            return False
        del self._workers[worker_id]
        self._disabled.discard(worker_id)
        await self._send(messages)
        return True

    async def _send(self, messages: Sequence[Message]) -> None:
        for channel, message in messages:
            await self._publisher.publish(channel, message)


def _now() -> str:
    return datetime.now(UTC).isoformat()
