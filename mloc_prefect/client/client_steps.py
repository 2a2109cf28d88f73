"""What a method of the clients consists of: steps, which one client carries out at once and the other one awaits.

A method is a generator. It yields steps, gets the outcome of each, and returns its value. So there is one text of what
is asked in which order, and the clients know only how to send.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from mloc_prefect.errors import MlocError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AskStep:
    """A request; its outcome is the response.

    Attributes:
        method: HTTP method.
        path: Path of the URL, or a link of an earlier response.
        more: Further arguments of `httpx.Client.request`.
        accepted: Statuses of error responses that are no error here.
    """

    method: str
    path: str
    more: Mapping[str, Any] = field(default_factory=dict)
    accepted: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PauseStep:
    """A pause of some seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class SendFileStep:
    """An upload of one file as a form; its outcome is the response."""

    path: str
    file: Path
    name: str


@dataclass(frozen=True, slots=True)
class SaveFileStep:
    """A download of one file.

    Attributes:
        path: Path of the URL.
        target: The file to write.
        sha256: Its digest as far as it is known, or None.
    """

    path: str
    target: Path
    sha256: str | None


@dataclass(frozen=True, slots=True)
class GiveStep:
    """A value for the caller of a method that yields several."""

    value: Any


Step = AskStep | PauseStep | SendFileStep | SaveFileStep | GiveStep
Steps = Generator[Step, Any, T]


class StepWalk(Generic[T]):
    """Yields the steps of a method; set `outcome` or `error` of each before the next.

    Args:
        steps: The method.

    Attributes:
        outcome: What came of the last step.
        error: Why the last step failed, or None.
        result: What the method returned, after its last step.
    """

    result: T

    def __init__(self, steps: Steps[T]) -> None:
        self._steps = steps
        self.outcome: Any = None
        self.error: MlocError | None = None

    def __iter__(self) -> Iterator[Step]:
        """Return the steps."""
        return self

    def __next__(self) -> Step:
        """Return the next step."""
        outcome, error = self.outcome, self.error
        self.outcome = self.error = None
        try:
            return self._steps.send(outcome) if error is None else self._steps.throw(error)
        except StopIteration as end:
            self.result = end.value
            raise StopIteration from None
