"""The line protocol of a host's socket: one connection per task, one JSON object per line.

Client to host: `{"op": "run", "request": {...}}` (or `"request_file"` when the request is larger than `REQUEST_LIMIT`),
`{"op": "ping"}`, `{"op": "sleep"}`, `{"op": "stop", "if_idle": bool, "devices": [...]}` (with `devices`: only a host
that has one of these GPUs). A client that closes its sending side cancels its task.

Host to client, by `t`: `accepted` (the request is queued), `started`, `event`, then either `result` or `error`;
`pong`, `asleep` and `stopping` answer the other operations. Standard library only.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import PurePath
from typing import Any
from uuid import UUID

REQUEST_LIMIT = 1 << 20
"""Bytes of a request on the socket; a larger one is passed as a file in the attempt directory."""

LINE_LIMIT = 4 << 20
"""Bytes of any line; a receiver of a longer line closes the connection."""

EVENT_LIMIT = 256 << 10
"""Bytes of an event or a summary; a larger one is replaced by a note."""


def dumps(value: Any) -> str:
    """Return `value` as one line of strict JSON: NaN and infinities as null, everything else as `plain` has it.

    Raises:
        TypeError: Something in `value` has no JSON form.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=plain)
    except ValueError:
        return json.dumps(json_ready(value), ensure_ascii=False, allow_nan=False)


def encode(message: Mapping[str, Any]) -> bytes:
    """Return `message` as one line."""
    return to_bytes(dumps(message)) + b"\n"


def to_bytes(text: str) -> bytes:
    r"""Return JSON text as UTF-8; a lone surrogate becomes its JSON escape, e.g. `\ud800`."""
    return text.encode("utf-8", "backslashreplace")


def decode(line: bytes) -> dict[str, Any]:
    """Return the object in `line`.

    Raises:
        ValueError: The line is not one JSON object.
    """
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError(f"expected a JSON object, got {type(message).__name__}")
    return message


def plain(value: Any) -> Any:
    """Return the JSON form of a value of another type, as data files have them.

    Dates and times are ISO 8601 text, durations seconds, decimals and UUIDs their text, bytes Base64, arrays lists,
    scalars of numpy, torch and Arrow plain values; "not a time" and "not a number" are null.

    Raises:
        TypeError: It has no JSON form.
    """
    if isinstance(value, (PurePath, UUID)):
        return str(value)
    if isinstance(value, (date, time)):  # datetime and pandas' Timestamp are dates
        return value.isoformat() if value == value else None  # noqa: PLR0124 - NaT does not equal itself
    if isinstance(value, timedelta):
        return value.total_seconds() if value == value else None  # noqa: PLR0124
    if isinstance(value, Decimal):
        return str(value) if value.is_finite() else None
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return dict(value)
    return _scalar(value)


def json_ready(value: Any) -> Any:
    """Return a value as JSON gives it back: with `plain` applied at any depth, and every key as text.

    Raises:
        TypeError: Something in it has no JSON form.
    """
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_key(name): json_ready(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(inner) for inner in value]
    return json_ready(plain(value))


def _key(name: Any) -> str:
    ready = json_ready(name)
    return ready if isinstance(ready, str) else json.dumps(ready)


def _scalar(value: Any) -> Any:
    if type(value).__name__ == "datetime64":  # of numpy; its `item` is a number of nanoseconds
        return None if str(value) == "NaT" else str(value)
    if callable(listed := getattr(value, "tolist", None)) and getattr(value, "ndim", None):
        return listed()  # an array of numpy or torch
    if callable(as_py := getattr(value, "as_py", None)):
        return as_py()  # a scalar of Arrow
    item = getattr(value, "item", None)  # numpy and torch scalars, without importing either
    if callable(item) and getattr(value, "ndim", None) == 0:
        return item()
    raise TypeError(f"{type(value).__name__} has no JSON form")
