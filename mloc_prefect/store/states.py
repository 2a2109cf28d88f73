"""States of a task record and which of them may follow which: pure functions, so that every store decides alike.

Prefect's events arrive late, twice, and out of order. Each becomes a `StatusMark`; a mark that is not beyond the
record's own is outdated and changes nothing. [protocol 2.2; decisions, "Stage run -> MLOC record and messages"]
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class TaskStatus(StrEnum):
    """`status` of a task record, as clients read it."""

    PENDING = "PENDING"
    WAITING = "WAITING"
    DISPATCHED = "DISPATCHED"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class Phase(IntEnum):
    """Progress of one attempt; larger is later. A record keeps the first of the three ends that it reaches."""

    PENDING = 0
    """Dependencies are open."""
    WAITING = 1
    """Ready, but no worker has room; or, from the second attempt on, backing off after a failure."""
    DISPATCHED = 2
    """Given to a worker (Prefect: Pending)."""
    STARTED = 3
    """Running at a worker (Prefect: Running); the record still says DISPATCHED."""
    DONE = 10
    FAILED = 11
    CANCELLED = 12

    @property
    def status(self) -> TaskStatus:
        """The status of a record in this phase."""
        return TaskStatus.DISPATCHED if self is Phase.STARTED else TaskStatus[self.name]

    @property
    def terminal(self) -> bool:
        """Whether the task is over; a terminal record never reopens."""
        return self >= Phase.DONE


@dataclass(frozen=True, slots=True)
class StatusMark:
    """A point in the life of a task.

    Attributes:
        attempt: The attempt, from 1. Waiting after a failure belongs to the next attempt.
        phase: Progress of that attempt.
    """

    attempt: int
    phase: Phase

    def __str__(self) -> str:
        return f"{self.phase.name} (attempt {self.attempt})"


def allowed(old: StatusMark | None, new: StatusMark) -> bool:
    """Return whether a record at `old` may go to `new`.

    A record that does not exist yet accepts any mark, a terminal one none. Otherwise the attempt must be later, or the
    same with a later phase: this refuses duplicates, events of an earlier attempt, and steps back. A later attempt
    cannot be PENDING, because its dependencies were met before the first one.
    """
    if old is None:
        return True
    if old.phase.terminal:
        return False
    if new.attempt != old.attempt:
        return new.attempt > old.attempt and new.phase is not Phase.PENDING
    return new.phase > old.phase
