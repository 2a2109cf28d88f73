"""Starts the parts in order, starts each again when it ends, and stops them in the opposite order."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from mloc_prefect.errors import reason
from mloc_prefect.process.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mloc_prefect.services.up.parts import Part

GRACE_SECONDS = 6.0


RESTARTS = Backoff(first=0.5, most=30.0)
"""Waits between two starts of a part."""


class PartSupervisor:
    """Runs groups of parts; those of one group start together, a group when the one before it is ready.

    Args:
        groups: The parts.
        report: Called with each line for people.
        changed: Called when a part has started or ended, see `note_change`.
        backoff: Waits between restarts.
        steady: A part that ran for so many seconds begins with the first wait again.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Part]],
        *,
        report: Callable[[str], None],
        changed: Callable[[], None] = lambda: None,
        backoff: Backoff = RESTARTS,
        steady: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._groups = [list(group) for group in groups]
        self._report = report
        self._changed = changed
        self._backoff = backoff
        self._steady = steady
        self._clock = clock
        self._watches: list[asyncio.Task[None]] = []
        self._late: asyncio.Task[None] | None = None
        self._complaint = ""
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
            self._watches += [asyncio.create_task(self._keep_running(part)) for part in group]
            self.note_change()

    async def stop(self, *, grace: float = GRACE_SECONDS) -> None:
        """End all parts, the last group first; 0 seconds of grace for those that should not be asked."""
        self._stopping = True
        tasks = [*self._watches, *([self._late] if self._late else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for group in reversed(self._groups):
            await asyncio.gather(*(part.stop(grace) for part in group))

    async def _keep_running(self, part: Part) -> None:
        failures = 0
        while True:
            began = self._clock()
            how = await part.ended()
            self.note_change()
            failures = 0 if self._clock() - began >= self._steady else failures
            self._report(f"{part.name} ended ({how}); starting it again in {self._backoff.after(failures):g} s")
            failures = await self._start_again(part, failures)
            self._report(f"{part.name} is back")
            self.note_change()

    def note_change(self) -> None:
        """Call `changed`; where that fails, report it once, and call it again until it succeeds."""
        if self._late is not None and not self._late.done():
            return
        if not self._published():
            self._late = asyncio.create_task(self._publish_later(), name="publish what runs")

    def _published(self) -> bool:
        try:
            self._changed()
        except Exception as error:  # boundary: a full disk, say, must not end the watch of a part
            if (text := reason(error)) != self._complaint:
                self._report(f"what runs could not be published, will retry: {text}")
            self._complaint = text
            return False
        self._complaint = ""
        return True

    async def _publish_later(self) -> None:
        for pause in self._backoff:
            await asyncio.sleep(pause)
            if self._published():
                return

    async def _start_again(self, part: Part, failures: int) -> int:
        """Start `part` until that succeeds; return how many short lives it has had."""
        while True:
            await asyncio.sleep(self._backoff.after(failures))
            failures += 1
            try:
                await part.start()
            except Exception as error:  # boundary: whatever keeps it from starting, such as a full disk, may pass
                wait = self._backoff.after(failures)
                self._report(f"{part.name} does not start: {reason(error)}; trying again in {wait:g} s")
            else:
                return failures
