"""`SpecReader`: typed access to the resolved spec inside an executor.

The spec was validated before it was sent. This only converts its plain JSON to Python values (numbers and booleans may
be written as text), without pydantic, because executor environments may lack our dependencies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mloc_prefect.execution.protocol import UserError

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0", ""})


@dataclass(frozen=True, slots=True)
class SpecReader:
    """One mapping of the spec.

    Attributes:
        data: The mapping.
        path: Its path in the spec, for messages.
    """

    data: Mapping[str, Any]
    path: str = "spec"

    def get(self, *names: str) -> Any:
        """Return the first value under `names` that is present and not null, else None."""
        return next((self.data[n] for n in names if self.data.get(n) is not None), None)

    def child(self, name: str) -> SpecReader:
        """Return the mapping under `name`, or an empty one when it is absent or null."""
        value = self.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise self.error(name, value, "a mapping")
        return SpecReader(value or {}, f"{self.path}.{name}")

    def text(self, *names: str) -> str | None:
        """Return text that is not blank, trimmed, or None."""
        value = self.get(*names)
        return None if value is None else str(value).strip() or None

    def integer(self, name: str, default: int, minimum: int = 0) -> int:
        """Return a whole number >= `minimum`."""
        value = self.get(name)
        number = self._number(name, default if value is None else value)
        if number != int(number) or number < minimum:
            raise self.error(name, value, f"a whole number >= {minimum}")
        return int(number)

    def number(self, name: str, default: float) -> float:
        """Return a finite number."""
        value = self.get(name)
        return self._number(name, default if value is None else value)

    def flag(self, name: str, default: bool) -> bool:
        """Return a boolean; `yes`, `no` and similar words count."""
        value = self.get(name)
        if value is None:
            return default
        text = str(value).strip().lower()
        if text not in _TRUE | _FALSE:
            raise self.error(name, value, "true or false")
        return text in _TRUE

    def error(self, name: str, found: object, wanted: str) -> UserError:
        """Return the error that `name` must be `wanted`."""
        return UserError(f"{self.path}.{name} must be {wanted}, found {found!r}")

    def _number(self, name: str, value: object) -> float:
        try:
            number = (
                float(str(value)) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
            )
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise self.error(name, value, "a number")
        return number
