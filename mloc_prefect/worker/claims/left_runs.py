"""Left runs: runs that this worker has claimed, and that have left its hands without an end that it knows of.

Its engine was ended as others had declared the worker lost, or the server answered a report with an error. Others come
for the runs of a worker once, when it is lost; for a run that is left later, or by a worker that lives, none of them
would come. So the worker looks after these runs itself, after a while in which an answer may still be under way.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import httpx

from mloc_prefect.errors import reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from uuid import UUID

logger = logging.getLogger("prefect.mloc.worker")


class LeftRuns:
    """Those runs.

    Args:
        recover: Starts again, puts back or ends those of the named runs that are still held by an incarnation of this
            worker, according to the server.
        patience: Seconds that a run is left alone: others who come for it have finished by then.
        clock: Seconds, never going back.
    """

    def __init__(
        self,
        recover: Callable[[str, Collection[UUID]], Awaitable[None]],
        *,
        patience: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recover, self._patience, self._clock = recover, patience, clock
        self._held: dict[UUID, str] = {}  # run -> incarnation that claimed it; at most the runs of this process
        self._left: dict[UUID, tuple[str, float]] = {}  # run -> that incarnation, and when it was left

    def note_claimed(self, flow_run_id: UUID, incarnation: str) -> None:
        """Note that this worker, as `incarnation`, has claimed a run."""
        self._held[flow_run_id] = incarnation
        self._left.pop(flow_run_id, None)

    def holds(self, flow_run_id: UUID) -> bool:
        """Return whether this worker has claimed a run, and neither ended nor left it."""
        return flow_run_id in self._held

    def note_ended(self, flow_run_id: UUID) -> None:
        """Note that the server knows the end of a run."""
        self._held.pop(flow_run_id, None)

    def note_left(self, flow_run_id: UUID) -> None:
        """Note that this worker does nothing more for a run; nothing happens when its end is known."""
        incarnation = self._held.pop(flow_run_id, None)
        if incarnation is not None:
            self.note_unsettled(flow_run_id, incarnation)

    def note_unsettled(self, flow_run_id: UUID, incarnation: str) -> None:
        """Note a run that this worker may have claimed as `incarnation`; nothing happens for one in its hands."""
        if flow_run_id in self._held:
            return
        self._left[flow_run_id] = incarnation, self._clock()

    async def settle(self) -> None:
        """Recover what was left long enough ago; without an answer of the server it is tried again."""
        now = self._clock()
        due: dict[str, set[UUID]] = {}
        for run, (incarnation, since) in self._left.items():
            if now - since >= self._patience:
                due.setdefault(incarnation, set()).add(run)
        for incarnation, runs in due.items():
            try:
                await self._recover(incarnation, runs)
            except httpx.HTTPError as error:
                logger.info("%d runs that were left are not settled yet: %s", len(runs), reason(error))
                continue
            for run in runs:  # unless it was claimed again, and left, meanwhile
                if self._left.get(run, ("", now))[1] < now:
                    del self._left[run]
