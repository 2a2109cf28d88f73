"""Parses split expressions of Hugging Face `datasets`, such as `train[:200]`, `train[10%:20%]`, `train+test`.

Our own parser, because rows also come from plain files, and because fractions of a percent are allowed here (sharded
MLOC tasks produce them, protocol 2.7).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mloc_prefect.execution.protocol import UserError

_BOUND = r"(-?\d[\d_]*(?:\.\d+)?)(%?)"
_PART = re.compile(rf"(?P<name>[^\[\]+]+?)\s*(?:\[\s*(?P<range>(?:{_BOUND})?\s*:\s*(?:{_BOUND})?)\s*\])?")
_SIDE = re.compile(_BOUND)


@dataclass(frozen=True, slots=True)
class Bound:
    """One side of a slice: a row number or a percentage of all rows; negative values count from the end."""

    value: float
    percent: bool

    def row(self, total: int) -> int:
        """Return the row of `total` at which it cuts; percentages round to the nearest row, as in `datasets`."""
        exact = round(self.value * total / 100.0) if self.percent else int(self.value)
        return min(max(exact + total if self.value < 0 else exact, 0), total)


@dataclass(frozen=True, slots=True)
class Split:
    """A named split and a slice of it."""

    name: str
    start: Bound | None = None
    stop: Bound | None = None

    def rows(self, total: int) -> range:
        """Return the selected row numbers of a split with `total` rows."""
        return range(self.start.row(total) if self.start else 0, self.stop.row(total) if self.stop else total)

    @property
    def rows_to_read(self) -> int | None:
        """Number of rows from the start that determine the slice, or None when all must be counted."""
        if self.stop is None or self.stop.percent or self.stop.value < 0:
            return None
        if self.start is not None and (self.start.percent or self.start.value < 0):
            return None
        return int(self.stop.value)


def parse_split(text: str) -> tuple[Split, ...]:
    """Return the parts of a split expression, in order.

    Raises:
        UserError: The text does not have the form ``name``, ``name[from:to]`` or a sum of these.
    """
    parts = []
    for piece in text.split("+"):
        match = _PART.fullmatch(piece.strip())
        if match is None:
            raise UserError(
                f"spec.data.split {text!r} is not understood; write a name and optionally a range, "
                "e.g. train, train[:200], train[10:20] or train[:5%]"
            )
        start, stop = (_bound(side, text) for side in (match["range"] or ":").split(":"))
        parts.append(Split(match["name"], start, stop))
    return tuple(parts)


def _bound(text: str, whole: str) -> Bound | None:
    match = _SIDE.fullmatch(text.strip())
    if match is None:
        return None
    value, percent = float(match[1].replace("_", "")), bool(match[2])
    if not percent and "." in match[1]:
        raise UserError(f"spec.data.split {whole!r}: {match[1]} is not a row number; add % for a percentage")
    return Bound(value, percent)
