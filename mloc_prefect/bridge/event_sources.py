"""Events of Prefect about runs of ours, and the sources that deliver them.

With Redis messaging they come from Prefect's stream `events`, through a consumer group of our own: unacknowledged ones
come again, so nothing is lost while no bridge runs. Otherwise they come from the websocket, which loses what happens
while it is not connected; the reconciler then finds that in the API.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

from mloc_prefect.prefect_ext.run_facts import STAGE_EVENT_PREFIX
from mloc_prefect.store.isolation import isolated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

    from pydantic import SecretStr

STREAM, GROUP, CONSUMER = "events", "mloc-bridge", "bridge"
STATES = "prefect.flow-run."
HEARTBEAT = "prefect.flow-run.heartbeat"
_BLOCK_MS = 1000
_BATCH = 100
_MOST_REMEMBERED = 10_000
_TAG = "prefect.tag."
_ATTEMPT = "mloc-attempt:"  # attempts on the pool: the events of their stages cover them


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """One event about a run of ours.

    Attributes:
        id: Its id; the same event may be delivered again.
        name: `prefect.flow-run.<state name>` or `mloc.stage.<kind>`.
        run_id: The flow run.
        at: When it happened, seconds since the epoch.
        tags: Tags of the run.
        type: Type of the state, upper case; empty for `mloc.stage.*`.
        message: Message of the state.
        run_count: How often the run was started.
        facts: Payload of `mloc.stage.*`.
    """

    id: str
    name: str
    run_id: str
    at: float
    tags: frozenset[str] = frozenset()
    type: str = ""
    message: str = ""
    run_count: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"event {self.id} ({self.name}) of run {self.run_id}"

    @property
    def state(self) -> str:
        """Name of the state, or the kind of an event of our stage runner."""
        return self.name.rsplit(".", 1)[-1]

    @property
    def from_stage_runner(self) -> bool:
        """Whether our stage runner sent it."""
        return self.name.startswith(STAGE_EVENT_PREFIX)


def parse(event: Mapping[str, Any]) -> RunEvent | None:
    """Parse an event in Prefect's JSON form; None when it is not about a run of ours."""
    name, resource = str(event.get("event") or ""), event.get("resource") or {}
    if not wanted(name):
        return None
    related = [str(r.get("prefect.resource.id", "")) for r in event.get("related") or ()]
    tags = frozenset(r.removeprefix(_TAG) for r in related if r.startswith(_TAG))
    if "mloc" not in tags or any(tag.startswith(_ATTEMPT) for tag in tags):
        return None
    staged = name.startswith(STAGE_EVENT_PREFIX)
    return RunEvent(
        id=str(event["id"]),
        name=name,
        run_id=str(resource["prefect.resource.id"]).removeprefix(STATES),
        at=_seconds(event["occurred"]),
        tags=tags,
        type="" if staged else str(resource.get("prefect.state-type") or ""),
        message="" if staged else str(resource.get("prefect.state-message") or ""),
        run_count=int(resource.get("prefect.run-count") or 0),
        facts=(event.get("payload") or {}) if staged else {},
    )


def parse_all(events: Iterable[Mapping[str, Any]]) -> list[RunEvent]:
    """Return the events about runs of ours; malformed ones are logged and left out."""
    found = []
    for event in events:
        named = event.get("id") if isinstance(event, Mapping) else event
        with isolated(f"event {named!s:.80} of Prefect"):
            found.append(parse(event))
    return [event for event in found if event is not None]


def wanted(name: str) -> bool:
    """Return whether an event with this name may be about a run of ours."""
    return name.startswith((STATES, STAGE_EVENT_PREFIX)) and name != HEARTBEAT


@dataclass(frozen=True, slots=True)
class EventDelivery:
    """An event with its acknowledgement.

    Attributes:
        event: The event.
        ack: To be awaited after the event was applied.
    """

    event: RunEvent
    ack: Callable[[], Awaitable[None]]


class EventSource(Protocol):
    """Delivers events about our runs in order, each at least once while the source is connected."""

    def batches(self) -> AsyncIterator[Sequence[EventDelivery]]:
        """Yield the next events; a batch may be empty.

        Raises:
            StoreError: The stream's server cannot be reached; iterate again later.
            OSError: The websocket cannot be opened.
        """
        ...


class SeenEvents:
    """The ids of the newest events that were handled."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, event_id: str) -> bool:
        return event_id in self._ids

    def add(self, event_id: str) -> None:
        """Add an id; the oldest one is forgotten."""
        self._ids[event_id] = None
        if len(self._ids) > _MOST_REMEMBERED:
            self._ids.popitem(last=False)


class StreamSource:
    """Prefect's stream of events in Redis.

    All bridges use the same consumer of the group: only one is active at a time, and it takes over the unacknowledged
    events of its predecessor.

    Args:
        url: Redis of Prefect's messaging.
        stream: Its stream of events.
    """

    def __init__(self, url: str | SecretStr, stream: str = STREAM) -> None:
        from mloc_prefect.store.redis.redis_client import RedisClient

        self._client = RedisClient(url)
        self._stream = stream

    async def batches(self) -> AsyncIterator[Sequence[EventDelivery]]:
        """See `EventSource`; events that were read before and not acknowledged come first."""
        start = "0"
        while True:
            rows = await self._read(start)
            if start != ">":
                start = rows[-1][0].decode() if rows else ">"
            decoded = [(entry_id, _decode(entry_id, fields)) for entry_id, fields in rows]
            await self._ack(*(entry_id for entry_id, event in decoded if event is None))
            yield [
                EventDelivery(event, partial(self._ack, entry_id)) for entry_id, event in decoded if event is not None
            ]

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def _read(self, start: str) -> list[tuple[bytes, dict[bytes, bytes] | None]]:
        from redis.exceptions import ResponseError

        with self._client.guard():
            try:
                return await self._read_group(start)
            except ResponseError as error:
                if not str(error).startswith("NOGROUP"):  # first use, or the database was flushed
                    raise
            try:
                # From the beginning: the records ignore events that they have seen, so old ones only cost time.
                await self._client.redis.xgroup_create(self._stream, GROUP, id="0", mkstream=True)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise
            return await self._read_group(start)

    async def _read_group(self, start: str) -> list[tuple[bytes, dict[bytes, bytes] | None]]:
        found = await self._client.waiting.xreadgroup(
            GROUP, CONSUMER, {self._stream: start}, count=_BATCH, block=_BLOCK_MS if start == ">" else None
        )
        return cast("list[tuple[bytes, dict[bytes, bytes] | None]]", found[0][1] if found else [])

    async def _ack(self, *entry_ids: bytes) -> None:
        if entry_ids:
            with self._client.guard():
                await self._client.redis.xack(self._stream, GROUP, *entry_ids)


class SocketSource:
    """Prefect's websocket of events. After a new connection it replays events, most of which were seen before."""

    async def batches(self) -> AsyncIterator[Sequence[EventDelivery]]:
        """See `EventSource`."""
        from prefect.events.clients import get_events_subscriber
        from prefect.events.filters import EventFilter, EventNameFilter

        names = EventFilter(event=EventNameFilter(prefix=[STATES, STAGE_EVENT_PREFIX]))
        async with get_events_subscriber(filter=names, reconnect_on_clean_close=True) as events:
            async for event in events:
                yield [EventDelivery(found, _nothing) for found in parse_all([event.model_dump(mode="json")])]


def _decode(entry_id: bytes, fields: Mapping[bytes, bytes] | None) -> RunEvent | None:
    """Return the event of an entry; None when it is about another run, malformed, or trimmed by the server."""
    with isolated(f"entry {entry_id.decode()} of Prefect's stream of events"):
        if fields and wanted(str(json.loads(fields[b"attributes"]).get("event") or "")):
            return parse(json.loads(fields[b"data"]))
    return None


def _seconds(occurred: str) -> float:
    return datetime.fromisoformat(occurred).timestamp()


async def _nothing() -> None:
    return
