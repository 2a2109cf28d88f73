"""Progress of an attempt: rows or steps, tokens a second, remaining time. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

_ETA_FROM = 0.05  # share of the rows that must be done before a guess is worth showing


class _Start(NamedTuple):
    """The point from which rates count."""

    clock: float
    done: int
    tokens_in: int
    tokens_out: int


@dataclass(slots=True)
class ProgressMeter:
    """Counts of one attempt, and the rates and remaining time that follow from them.

    Rates count from its first progress, so loading is left out.

    Attributes:
        done: Rows finished (of trainings: steps), those of earlier attempts included.
        total: Rows or steps in all; 0 while unknown.
        tokens_in: Tokens of prompts read in this attempt.
        tokens_out: Tokens generated in this attempt.
        unit: What is counted: `rows`, or `steps` of a training.
    """

    done: int = 0
    total: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    unit: str = "rows"
    _start: _Start | None = field(default=None, repr=False)

    def take(self, data: Mapping[str, Any], now: float) -> None:
        """Take in a `progress` event; counts that fall begin again, as after the restart of an engine.

        Args:
            data: Its data; names that are missing keep their count.
            now: Seconds by any clock, the same for all calls.
        """
        found = _Start(
            now,
            int(data.get("done") or 0),
            int(data.get("tokens_in", self.tokens_in) or 0),
            int(data.get("tokens_out", self.tokens_out) or 0),
        )
        if self._start is None or found.done < self.done or found.tokens_out < self.tokens_out:
            self._start = found
        self.done, self.tokens_in, self.tokens_out = found[1:]
        self.total = int(data.get("total") or 0)
        self.unit = str(data.get("unit") or self.unit)

    def rates(self, now: float) -> tuple[float | None, float | None]:
        """Return tokens a second in and out; None where none has come yet."""
        if self._start is None:
            return None, None
        read, written = self.tokens_in - self._start.tokens_in, self.tokens_out - self._start.tokens_out
        spent = now - self._start.clock
        return (read / spent if spent > 0 and read > 0 else None), (
            written / spent if spent > 0 and written > 0 else None
        )

    def eta(self, now: float) -> float | None:
        """Return the expected seconds until the last row, from 5 % on; rows of earlier attempts do not count."""
        if self._start is None or not self.total or self.done >= self.total:
            return None
        fresh = self.done - self._start.done
        if fresh <= 0 or self.done < _ETA_FROM * self.total:
            return None
        return (now - self._start.clock) / fresh * (self.total - self.done)

    def text(self, now: float) -> str:
        """Return e.g. `12/48 rows, 95 tokens/s in, 310 out, about 12 s left`."""
        counts = f"{self.done}/{self.total} {self.unit}" if self.total else f"{self.done} {self.unit}"
        left = self.eta(now)
        guess = "" if left is None else f"about {duration(left)} left"
        return ", ".join(filter(None, (counts, self._rates_text(now), guess)))

    def _rates_text(self, now: float) -> str:
        read, written = self.rates(now)
        if written is None:
            return ""
        return (
            f"{rate_text(written)} tokens/s out"
            if read is None
            else (f"{rate_text(read)} tokens/s in, {rate_text(written)} out")
        )


def phase_text(data: Mapping[str, Any]) -> str:
    """Return `loading weights 40 %` for a phase event."""
    fraction = data.get("fraction")
    text = str(data.get("text", ""))
    return f"{text} {float(fraction) * 100:.0f} %" if isinstance(fraction, int | float) else text


def duration(seconds: float) -> str:
    """Return `0.4 s`, `12 s`, `3:05` or `1:02:03`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def rate_text(rate: float) -> str:
    """Return a rate with one decimal below ten."""
    return f"{rate:.1f}" if rate < 10 else f"{rate:.0f}"
