"""The line protocol of a host's socket: one connection = one task, one JSON object a line.

Client to host: `{"op": "run", "request": {...}}` (or `"request_file"` when the request is larger than `REQUEST_LIMIT`),
`{"op": "ping"}`, `{"op": "sleep"}`, `{"op": "stop", "if_idle": bool, "devices": [...]}` (with `devices`: only a host
that has one of these GPUs). A client that shuts its sending side cancels its task.

Host to client, by `t`: `accepted` (the request is queued), `started`, `event`, then one of `result` and `error`;
`pong`, `asleep` and `stopping` answer the other operations. Standard library only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

REQUEST_LIMIT = 1 << 20
"""Bytes of a request on the socket; a larger one goes through a file in the attempt directory."""

LINE_LIMIT = 4 << 20
"""Bytes of any line; a side that gets a longer one closes the connection."""

EVENT_LIMIT = 256 << 10
"""Bytes of an event or a summary; larger ones are replaced by a note."""


def dumps(value: Any) -> str:
    """Return `value` as one line of strict JSON: NaN and infinities become null, paths and numpy scalars plain values.

    Raises:
        TypeError: Something in `value` has no JSON form.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=_plain)


def encode(message: Mapping[str, Any]) -> bytes:
    """Return `message` as one line."""
    return to_bytes(dumps(message)) + b"\n"


def to_bytes(text: str) -> bytes:
    r"""Return JSON text as UTF-8; a lone surrogate becomes its `\ud800` escape, which is what JSON calls it."""
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


def _plain(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    item = getattr(value, "item", None)  # numpy and torch scalars, without importing either
    if callable(item) and getattr(value, "ndim", None) == 0:
        return item()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
