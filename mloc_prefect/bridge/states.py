"""States of a task record and which of them may follow which: pure, so that every store decides alike.

Prefect's events arrive late, twice, and out of order. Each is turned into a `Mark`; a mark that does not lie beyond the
record's own is old news and changes nothing. [protocol 2.2; architecture, "Stage run -> MLOC record and messages"]
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
    """How far one attempt has come; larger is later. The three ends share the last rank: the first one stays."""

    PENDING = 0
    """Dependencies are open."""
    WAITING = 1
    """Ready, but nothing has room for it; or, from the second attempt on, backing off after a failure."""
    DISPATCHED = 2
    """Given to a worker (Prefect: Pending)."""
    STARTED = 3
    """Running at a worker (Prefect: Running); the record still says DISPATCHED."""
    DONE = 10
    FAILED = 11
    CANCELLED = 12

    @property
    def status(self) -> TaskStatus:
        """The status that the record shows in this phase."""
        return TaskStatus.DISPATCHED if self is Phase.STARTED else TaskStatus[self.name]

    @property
    def terminal(self) -> bool:
        """Whether the task is over; a terminal record never reopens."""
        return self >= Phase.DONE


@dataclass(frozen=True, slots=True)
class Mark:
    """A point in the life of a task.

    Attributes:
        attempt: Attempt that it belongs to, from 1. Waiting after a failure belongs to the attempt that is waited for.
        phase: How far that attempt has come.
    """

    attempt: int
    phase: Phase

    def __str__(self) -> str:
        return f"{self.phase.name} (attempt {self.attempt})"


def allowed(old: Mark | None, new: Mark) -> bool:
    """Return whether a record at `old` may go to `new`.

    A record that does not exist yet takes any mark; a terminal one none. Otherwise the attempt must be later, or the
    same with a later phase: so a duplicate, an event of an earlier attempt, and a step back are all refused. A later
    attempt cannot be PENDING: its dependencies were met before the first one.
    """
    if old is None:
        return True
    if old.phase.terminal:
        return False
    if new.attempt != old.attempt:
        return new.attempt > old.attempt and new.phase is not Phase.PENDING
    return new.phase > old.phase
