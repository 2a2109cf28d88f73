"""Runs of which a worker does not know whether it has taken them: the server did not answer, or an error came between.

The server may have made such a run Pending all the same. Nobody would start it then, and no reaper would come for it as
long as the worker lives.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING
from uuid import UUID

import httpx

from mloc_prefect.errors import reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

logger = logging.getLogger("prefect.mloc.worker")

REST_SECONDS = 2.0
"""How long such a run is left to others: what failed just now would fail again."""

_MOST_PAUSE = 30.0
_DOUBT_SECONDS = 600.0  # after which no answer can be under way any more


class Doubts:
    """Those runs.

    Args:
        put_back: Schedules again those of the named runs that are Pending and ours; returns their ids.
        clock: Seconds, never going back.
    """

    def __init__(
        self,
        put_back: Callable[[Collection[UUID]], Awaitable[Collection[str]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._put_back, self._clock = put_back, clock
        self._since: dict[UUID, float] = {}
        self._next = 0.0

    def add(self, flow_run_id: UUID) -> None:
        """Take note of a run."""
        self._since[flow_run_id] = self._next = self._clock()

    @property
    def resting(self) -> frozenset[UUID]:
        """The runs that are not to be taken yet."""
        now = self._clock()
        return frozenset(run for run, since in self._since.items() if now - since < REST_SECONDS)

    async def settle(self, here: Collection[UUID]) -> None:
        """Put back what the server has given us; what it does not say now, it is asked for again the next time.

        Args:
            here: The runs that this worker is taking or running.
        """
        now = self._clock()
        self._since = {r: t for r, t in self._since.items() if r not in here and now - t < _DOUBT_SECONDS}
        if not self._since or now < self._next:
            return
        # Soon at first, then less and less often: polls wait for the answer.
        self._next = now + min(max(REST_SECONDS, now - max(self._since.values())), _MOST_PAUSE)
        try:
            for run in await self._put_back(tuple(self._since)):
                del self._since[UUID(run)]
        except httpx.HTTPError as error:
            logger.info("not known yet what became of %d runs: %s", len(self._since), reason(error))
