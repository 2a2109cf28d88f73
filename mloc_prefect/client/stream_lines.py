"""Lines of logs and messages of channels as they arrive (server-sent events)."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from mloc_prefect.errors import DispatchError

SILENCE_SECONDS = 60.0
"""Longest silence of a stream; the endpoint sends a keep-alive comment every 15 s."""

EVENT_STREAM = {"Accept": "text/event-stream"}


class ServerEvent(NamedTuple):
    """One server-sent event.

    Attributes:
        name: Its name, or empty.
        lines: Its data, line by line.
        event_id: Its id, or empty.
    """

    name: str
    lines: tuple[str, ...]
    event_id: str


class ChannelMessage(NamedTuple):
    """One message of MLOC's channels.

    Attributes:
        channel: `tasks`, `tasks.events` or `workers.events`.
        message: Its content, without secrets.
        event_id: Names its place in the stream of this endpoint process; see `last_id` of `MlocClient.events`.
    """

    channel: str
    message: dict[str, Any]
    event_id: str


class ServerEventReader:
    """Makes events of the lines of a stream; comments are skipped."""

    def __init__(self) -> None:
        self._name, self._id, self._data = "", "", list[str]()

    def take(self, line: str) -> ServerEvent | None:
        """Take the next line; return the event that it ends, or None."""
        if not line:
            event = ServerEvent(self._name, tuple(self._data), self._id)
            self._name, self._data = "", []
            return event if event.lines or event.name else None
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value.strip()
        elif field == "id":
            self._id = value
        return None


def log_lines_of(event: ServerEvent | None) -> tuple[str, ...]:
    """Return the log lines of an event; named ones, such as the `end`, have none."""
    return event.lines if event is not None and not event.name else ()


def message_of(event: ServerEvent | None) -> ChannelMessage | None:
    """Return the message that an event carries, or None.

    Raises:
        DispatchError: Messages are missing, as this client reads too slowly.
    """
    if event is None:
        return None
    if event.name == "behind":
        raise DispatchError(
            "messages are missing: the client reads them too slowly",
            hint="subscribe again, and read the records of the tasks once more",
        )
    return ChannelMessage(event.name, json.loads("\n".join(event.lines)), event.event_id)
