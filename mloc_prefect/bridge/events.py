"""Events of Prefect about runs of ours, and where the bridge gets them from.

With Redis messaging: from Prefect's stream `events`, by a consumer group of our own; what was taken and not
acknowledged comes again, so nothing is lost while the bridge is away. Without it: from the websocket, which loses what
happens while it is not connected; the reconciler then finds that in the API.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

from mloc_prefect.bridge.odd import contained
from mloc_prefect.orchestrate.tell import PREFIX

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

    from pydantic import SecretStr

STREAM, GROUP, CONSUMER = "events", "mloc-bridge", "bridge"
STATES = "prefect.flow-run."
HEARTBEAT = "prefect.flow-run.heartbeat"
_BLOCK_MS = 1000
_BATCH = 100
_REMEMBERED = 10_000
_TAG = "prefect.tag."
_ATTEMPT = "mloc-attempt:"  # attempts on the pool: their stages tell of them, and nobody has to look them up


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """One event about a run of ours.

    Attributes:
        id: Its id; the same event may come again.
        name: `prefect.flow-run.<state name>` or `mloc.stage.<what>`.
        run_id: Flow run that it is about.
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
        """Name of the state, or what the stage runner says."""
        return self.name.rsplit(".", 1)[-1]

    @property
    def told(self) -> bool:
        """Whether it comes from our stage runner."""
        return self.name.startswith(PREFIX)


def parse(event: Mapping[str, Any]) -> RunEvent | None:
    """Return an event in Prefect's JSON form, or None when it is not about a run of ours."""
    name, resource = str(event.get("event") or ""), event.get("resource") or {}
    if not wanted(name):
        return None
    related = [str(r.get("prefect.resource.id", "")) for r in event.get("related") or ()]
    tags = frozenset(r.removeprefix(_TAG) for r in related if r.startswith(_TAG))
    if "mloc" not in tags or any(tag.startswith(_ATTEMPT) for tag in tags):
        return None
    told = name.startswith(PREFIX)
    return RunEvent(
        id=str(event["id"]),
        name=name,
        run_id=str(resource["prefect.resource.id"]).removeprefix(STATES),
        at=_seconds(event["occurred"]),
        tags=tags,
        type="" if told else str(resource.get("prefect.state-type") or ""),
        message="" if told else str(resource.get("prefect.state-message") or ""),
        run_count=int(resource.get("prefect.run-count") or 0),
        facts=(event.get("payload") or {}) if told else {},
    )


def parse_all(events: Iterable[Mapping[str, Any]]) -> list[RunEvent]:
    """Return those of the events that are about runs of ours and can be read; the log names the others."""
    found = []
    for event in events:
        named = event.get("id") if isinstance(event, Mapping) else event
        with contained(f"event {named!s:.80} of Prefect"):
            found.append(parse(event))
    return [event for event in found if event is not None]


def wanted(name: str) -> bool:
    """Return whether an event of this name may concern us."""
    return name.startswith((STATES, PREFIX)) and name != HEARTBEAT


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event that was handed over.

    Attributes:
        event: The event.
        ack: To be awaited once everything that follows from it is done.
    """

    event: RunEvent
    ack: Callable[[], Awaitable[None]]


class EventSource(Protocol):
    """Hands over events about our runs, in order, each at least once while the source is connected."""

    def batches(self) -> AsyncIterator[Sequence[Delivery]]:
        """Yield what has come, also nothing now and then.

        Raises:
            StoreError: The stream's server cannot be reached; iterate again later.
            OSError: The websocket cannot be opened.
        """
        ...


class Seen:
    """The newest event ids that were handled."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, event_id: str) -> bool:
        return event_id in self._ids

    def add(self, event_id: str) -> None:
        """Note an id; the oldest one is forgotten."""
        self._ids[event_id] = None
        if len(self._ids) > _REMEMBERED:
            self._ids.popitem(last=False)


class StreamSource:
    """Prefect's stream in Redis.

    All bridges are the same consumer of the group: only one is active at a time, and what its predecessor had taken
    and not acknowledged is its own.

    Args:
        url: Redis of Prefect's messaging.
        stream: Its stream of events.
    """

    def __init__(self, url: str | SecretStr, stream: str = STREAM) -> None:
        from mloc_prefect.bridge.redis_client import RedisClient

        self._client = RedisClient(url)
        self._stream = stream

    async def batches(self) -> AsyncIterator[Sequence[Delivery]]:
        """See `EventSource`: first what was taken before, then what comes."""
        start = "0"
        while True:
            rows = await self._read(start)
            if start != ">":
                start = rows[-1][0].decode() if rows else ">"
            decoded = [(entry_id, _decode(entry_id, fields)) for entry_id, fields in rows]
            await self._ack(*(entry_id for entry_id, event in decoded if event is None))
            yield [Delivery(event, partial(self._ack, entry_id)) for entry_id, event in decoded if event is not None]

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
                # From the beginning: what was before is old news to the records, and costs nothing but reading it.
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
    """Prefect's websocket of events. What it replays after a new connection has been seen before, mostly."""

    async def batches(self) -> AsyncIterator[Sequence[Delivery]]:
        """See `EventSource`."""
        from prefect.events.clients import get_events_subscriber
        from prefect.events.filters import EventFilter, EventNameFilter

        names = EventFilter(event=EventNameFilter(prefix=[STATES, PREFIX]))
        async with get_events_subscriber(filter=names, reconnect_on_clean_close=True) as events:
            async for event in events:
                yield [Delivery(found, _nothing) for found in parse_all([event.model_dump(mode="json")])]


def _decode(entry_id: bytes, fields: Mapping[bytes, bytes] | None) -> RunEvent | None:
    """Return the event of an entry; None for others, for those that nobody can read or the server has trimmed away."""
    with contained(f"entry {entry_id.decode()} of Prefect's stream of events"):
        if fields and wanted(str(json.loads(fields[b"attributes"]).get("event") or "")):
            return parse(json.loads(fields[b"data"]))
    return None


def _seconds(occurred: str) -> float:
    return datetime.fromisoformat(occurred).timestamp()


async def _nothing() -> None:
    return
