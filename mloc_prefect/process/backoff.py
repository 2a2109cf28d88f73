"""The waits between tries that fail: each longer than the one before, up to a bound, or as long as a server asks for.

Standard library only.

`tenacity` would wrap the call that is tried; here the loop is the caller's own, since each knows other errors, ends by
other rules and logs other lines. Only the waits are common.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")
_MOST_DOUBLINGS = 64  # beyond any bound in use, and far from the largest float


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits that grow.

    Attributes:
        first: Seconds before the second try.
        most: Longest wait.
        factor: How many times as long as the one before each wait is.
    """

    first: float
    most: float = math.inf
    factor: float = 2.0

    def after(self, failures: int) -> float:
        """Return the wait that follows `failures` waits before it."""
        return float(min(self.most, self.first * self.factor ** min(failures, _MOST_DOUBLINGS)))

    def __iter__(self) -> Iterator[float]:
        """Yield the waits one after the other, without end."""
        return (self.after(failures) for failures in itertools.count())


def retry_after(value: str | None) -> float:
    """Return the seconds that a header `Retry-After` names, as a number or a date; 0 if it names none.

    The number is finite and not negative, but may be large: the caller bounds it.
    """
    text = (value or "").strip()
    if _SECONDS.fullmatch(text):
        seconds = float(text)
        return seconds if math.isfinite(seconds) else 0.0
    try:
        moment = parsedate_to_datetime(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)  # `-0000`: UTC, of no known place
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0
