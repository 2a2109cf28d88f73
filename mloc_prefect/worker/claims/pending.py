"""Pending claims: runs that this worker has claimed and not begun, or of which it does not know whether it has.

Others may take a claimed run away while this process is paused. And when the server does not answer a claim, it may
have made the run Pending all the same: no other worker would start it then, and no recovery would come for it as long
as this worker lives.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING
from uuid import UUID

import httpx

from mloc_prefect.errors import reason
from mloc_prefect.prefect_ext.state_reasons import StateCode, StateReason, reason_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from prefect.client.orchestration import PrefectClient

logger = logging.getLogger("prefect.mloc.worker")

REST_SECONDS = 2.0
"""How long a run of an unanswered claim is left to others: what failed just now would fail again."""

_MAX_PAUSE_SECONDS = 30.0
_UNKNOWN_SECONDS = 600.0  # after which no answer can be under way any more


async def _is_confirmed(_incarnation: str) -> bool:
    return True


class PendingClaims:
    """Those claims.

    Args:
        worker: Id of the worker.
        client: Open client.
        is_sure: Returns whether no other worker can have declared an incarnation of this worker lost yet.
        put_back: Schedules again those of the named runs that are Pending and ours; returns their ids.
        confirm: Returns whether this process still is an incarnation of this worker, once that is certain.
        clock: Seconds, never going back.
    """

    def __init__(
        self,
        worker: str,
        client: PrefectClient,
        *,
        is_sure: Callable[[str], bool],
        put_back: Callable[[Collection[UUID]], Awaitable[Collection[str]]],
        confirm: Callable[[str], Awaitable[bool]] = _is_confirmed,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker, self._client = worker, client
        self._is_sure, self._put_back, self._clock = is_sure, put_back, clock
        self._confirm = confirm
        self._claimed: dict[UUID, str] = {}  # run -> incarnation that claimed it
        self._unknown: dict[UUID, float] = {}  # run -> when it was claimed without an answer
        self._next_settle = 0.0

    def note_claimed(self, flow_run_id: UUID, incarnation: str) -> None:
        """Note that this worker, as `incarnation`, has claimed a run."""
        self._claimed[flow_run_id] = incarnation

    def forget_claimed(self, flow_run_id: UUID) -> None:
        """Forget a claimed run, which has begun or will not; a second time nothing happens."""
        self._claimed.pop(flow_run_id, None)

    async def still_held(self, flow_run_id: UUID) -> bool:
        """Return whether a claimed run is still ours, just before it begins; one that was never noted is not.

        After a pause of this process others may have given it to another worker, or may have looked for its runs before
        it claimed this one: then nobody would look again. A run that is being cancelled counts as ours: it is ended as
        cancelled when it is begun.

        Raises:
            httpx.HTTPError: The server does not answer.
        """
        incarnation = self._claimed.pop(flow_run_id, None)
        if incarnation is not None and self._is_sure(incarnation):
            return True
        state = (await self._client.read_flow_run(flow_run_id)).state
        if state is None or state.is_cancelling():
            return state is not None
        if incarnation is None or reason_of(state) != StateReason(StateCode.CLAIMED, self._worker, incarnation):
            return False
        return state.is_pending() and await self._confirm(incarnation)

    def note_unknown(self, flow_run_id: UUID) -> None:
        """Note a run of which it is unknown whether this worker has claimed it."""
        self._unknown[flow_run_id] = self._next_settle = self._clock()

    @property
    def resting(self) -> frozenset[UUID]:
        """Runs of unanswered claims that are not to be claimed yet."""
        now = self._clock()
        return frozenset(run for run, since in self._unknown.items() if now - since < REST_SECONDS)

    async def settle_unknown(self, here: Collection[UUID]) -> None:
        """Put back the runs that the server has given us without our knowledge; what is still unknown waits.

        Args:
            here: Runs that this worker is claiming or running.
        """
        now = self._clock()
        self._unknown = {r: t for r, t in self._unknown.items() if r not in here and now - t < _UNKNOWN_SECONDS}
        if not self._unknown or now < self._next_settle:
            return
        # Soon at first, then less and less often: polls wait for the answer.
        self._next_settle = now + min(max(REST_SECONDS, now - max(self._unknown.values())), _MAX_PAUSE_SECONDS)
        try:
            for run in await self._put_back(tuple(self._unknown)):
                del self._unknown[UUID(run)]
        except httpx.HTTPError as error:
            logger.info("the outcome of claims on %d runs is not known yet: %s", len(self._unknown), reason(error))
