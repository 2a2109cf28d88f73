"""Lists of ports as settings have them: `8080,9000-9100`. Standard library only."""

from __future__ import annotations

from functools import lru_cache

UNPRIVILEGED = "1024-65535"
"""The ports that programs without privileges listen on."""

_LAST = 65535


@lru_cache(maxsize=16)
def port_ranges(text: str) -> tuple[range, ...]:
    """Return the ports of a list; an empty one has none.

    Raises:
        ValueError: It is no such list.
    """
    return tuple(_range(word.strip()) for word in text.split(",") if word.strip())


def _range(word: str) -> range:
    first, dash, last = (part.strip() for part in word.partition("-"))
    last = last if dash else first
    if not (first.isdecimal() and last.isdecimal()) or not 0 < int(first) <= int(last) <= _LAST:
        raise ValueError(f"{word!r} is no port and no range of ports, such as 8080 or 9000-9100")
    return range(int(first), int(last) + 1)
