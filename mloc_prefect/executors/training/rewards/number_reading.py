"""Reads the last number of a text, as people write numbers in answers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_MINUS = "-\u2212\ufe63\uff0d"  # hyphen, minus sign, and its small and full-width forms
_NUMBER = re.compile(
    rf"""
    (?P<sign>(?<![\w.)\]}}%])[{_MINUS}+])?    # 10-12 is a range, so a sign follows neither a digit nor a bracket
    [$\u20ac\u00a3\u00a5]?
    (?:
        \\[dt]?frac\{{(?P<above>\d+)\}}\{{(?P<below>\d+)\}}
      | (?P<digits>
            \d{{1,3}}(?:[,\u00a0\u202f]\d{{3}})+(?![\d,]?\d)(?:\.\d+)?     # 1,200.5
          | \d+(?:\.\d+)?
          | (?<![\d.])\.\d+                                                # .5
        )
        (?:
            [eE](?P<exponent>[{_MINUS}+]?\d+)(?!\w)
          | \s?(?:[x*\u00d7\u00b7]|\\times|\\cdot)\s?10(?:\^|\*\*)\{{?(?P<power>[{_MINUS}+]?\d+)\}}?
          | (?:\s(?P<more>\d+))?/(?P<parts>\d+)(?![\d/])                    # 3/4, 1 3/4; but not 3/4/2026
        )?
    )
    (?P<percent>\s?\\?[%\uff05])?
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class WrittenNumber:
    """A number in a text.

    Attributes:
        value: Its value; `50%` is 0.5.
        plain: The value without a percent sign; `50%` is 50.
    """

    value: float
    plain: float

    def answers(self, wanted: WrittenNumber, tolerance: float) -> bool:
        """Return whether this number is the wanted one.

        If only one of the two has a percent sign, it may be a unit that the other leaves out: `50` and `0.5` both
        answer `50%`, as the graders of the known data sets have it, and `50%` answers `50` and `0.5`.
        """
        one_sign = (self.value == self.plain) != (wanted.value == wanted.plain)
        pairs = {(self.value, wanted.value), (self.plain, wanted.plain)} if one_sign else {(self.value, wanted.value)}
        return any(math.isclose(gold, found, abs_tol=tolerance) for found, gold in pairs)


def last_number(text: str) -> WrittenNumber | None:
    """Return the last number of `text`, None when it has none, or one that is not finite."""
    last = None
    for last in _NUMBER.finditer(text):  # noqa: B007  # only the last one counts
        pass
    plain = None if last is None else _value(last)
    if last is None or plain is None or not math.isfinite(plain):
        return None
    return WrittenNumber(plain / 100 if last["percent"] else plain, plain)


def _value(found: re.Match[str]) -> float | None:
    """Return the value without a percent sign, None for a fraction that has none."""
    sign = -1.0 if found["sign"] and found["sign"] in _MINUS else 1.0
    if found["above"]:
        return _share(sign * float(found["above"]), found["below"])
    number = float(re.sub(r"[,\u00a0\u202f]", "", found["digits"]))
    if power := found["exponent"] or found["power"]:
        plain = power.translate(dict.fromkeys(map(ord, _MINUS), "-"))
        return sign * float(f"{number!r}e{plain}") if "e" not in repr(number) else sign * number * 10.0 ** int(plain)
    if found["parts"] is None:
        return sign * number
    if found.string[: found.start()].endswith("/"):  # a date, not a fraction
        return float(found["parts"])
    if found["more"] is None:
        return _share(sign * number, found["parts"])
    rest = _share(float(found["more"]), found["parts"])
    return None if rest is None else sign * (number + rest)


def _share(above: float, below: str) -> float | None:
    return above / float(below) if float(below) else None
