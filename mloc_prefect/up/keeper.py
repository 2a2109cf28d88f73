"""Keeps the parts running: starts them in order, again when one ends, and stops them in the opposite order."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mloc_prefect.errors import DispatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mloc_prefect.up.parts import Part

GRACE_SECONDS = 6.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits between two starts of a part.

    Attributes:
        first: Seconds before the first restart.
        most: Longest wait; each is twice the one before.
        steady: A part that ran for so many seconds begins with the first wait again.
    """

    first: float = 0.5
    most: float = 30.0
    steady: float = 60.0

    def after(self, failures: int) -> float:
        """Return the wait before the start that follows `failures` short lives."""
        return float(min(self.most, self.first * 2 ** min(failures, 20)))


class Keeper:
    """Runs groups of parts; those of one group start together, a group when the one before it is ready.

    Args:
        groups: The parts.
        say: Called with what people should know, one line each.
        changed: Called when a part has started or ended.
        backoff: Waits between restarts.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Part]],
        *,
        say: Callable[[str], None],
        changed: Callable[[], None] = lambda: None,
        backoff: Backoff = Backoff(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._groups = [list(group) for group in groups]
        self._say = say
        self._changed = changed
        self._backoff = backoff
        self._clock = clock
        self._watches: list[asyncio.Task[None]] = []
        self._stopping = False

    @property
    def parts(self) -> list[Part]:
        """All parts in order of their start."""
        return [part for group in self._groups for part in group]

    async def start(self) -> None:
        """Start all groups and keep what runs running.

        Raises:
            DispatchError: A part did not start; `stop` ends the others.
        """
        for group in self._groups:
            starts = [asyncio.ensure_future(part.start()) for part in group]
            try:
                await asyncio.gather(*starts)
            except BaseException:
                for start in starts:
                    start.cancel()
                await asyncio.gather(*starts, return_exceptions=True)
                raise
            self._watches += [asyncio.create_task(self._keep(part)) for part in group]
            self._changed()

    async def stop(self, *, grace: float = GRACE_SECONDS) -> None:
        """End all parts, the last group first; 0 seconds of grace for those that should not be asked."""
        self._stopping = True
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        for group in reversed(self._groups):
            await asyncio.gather(*(part.stop(grace) for part in group))

    async def _keep(self, part: Part) -> None:
        failures = 0
        while True:
            began = self._clock()
            how = await part.ended()
            self._changed()
            failures = 0 if self._clock() - began >= self._backoff.steady else failures
            self._say(f"{part.name} ended ({how}); starting it again in {self._backoff.after(failures):g} s")
            failures = await self._start_again(part, failures)
            self._say(f"{part.name} is back")
            self._changed()

    async def _start_again(self, part: Part, failures: int) -> int:
        """Start `part` until that succeeds; returns how many short lives it has had now."""
        while True:
            await asyncio.sleep(self._backoff.after(failures))
            failures += 1
            try:
                await part.start()
            except DispatchError as error:
                wait = self._backoff.after(failures)
                self._say(f"{part.name} does not start: {error.message}; trying again in {wait:g} s")
            else:
                return failures
