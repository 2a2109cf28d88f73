"""One line of the report of `mloc doctor`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["ok", "note", "missing", "bad"]


@dataclass(frozen=True, slots=True)
class DoctorFinding:
    """One line of the report.

    Attributes:
        topic: What was checked.
        name: Which one.
        level: `ok`, `note` (a fact), `missing` (something optional), `bad` (must be fixed).
        text: The finding.
        fix: The command or change that fixes it, or None.
        facts: The finding as data, for programs.
    """

    topic: str
    name: str
    level: Level
    text: str
    fix: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
