"""Sizes and durations as people write and read them."""

from __future__ import annotations

import re

from mloc_prefect.errors import UsageError

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_STEPS = ("B", "KiB", "MiB", "GiB", "TiB")


def parse_age(text: str) -> float:
    """Return the seconds in `30d`, `12h`, `90m`, `45s` or `2w`.

    Raises:
        UsageError: The text has another format.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*", text)
    if match is None:
        raise UsageError(f"{text!r} is not a duration", hint="write a number and s, m, h, d or w, for example 30d")
    return float(match[1]) * _SECONDS[match[2]]


def parse_size(text: str) -> int:
    """Return the bytes in `50GiB` (spellings of protocol 4.1).

    Raises:
        UsageError: The text has another format.
    """
    from mloc_prefect.plan.resources import parse_memory

    size = parse_memory(text)
    if size is None:
        raise UsageError(f"{text!r} is not a size", hint="write a whole number and a unit, for example 50GiB")
    return size


def age_text(seconds: float) -> str:
    """Return `3 d`, `5 h`, `7 min` or `12 s`."""
    for unit, name in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= unit:
            return f"{int(seconds // unit)} {name}"
    return f"{max(0, int(seconds))} s"


def size_text(size: float) -> str:
    """Return `512 B`, `1.5 GiB`."""
    for step in _STEPS:
        if size < 1024 or step == _STEPS[-1]:
            break
        size /= 1024
    return f"{size:.0f} {step}" if step == "B" else f"{size:.1f} {step}"
