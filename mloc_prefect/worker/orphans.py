"""Users' own flows whose worker is gone: they are marked as crashed once they are silent too.

Each runs in a process of its own, which may well outlive its worker, and on another machine nobody can see it. But
Prefect's engine sends an event every few minutes for as long as it runs a flow, unless that is switched off
(`PREFECT_FLOWS_HEARTBEAT_FREQUENCY`). Nobody compares clocks of different machines: the silence is timed by our own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import httpx

from mloc_prefect.orchestrate.api import ask
from mloc_prefect.worker.recovery import INCARNATION_LABEL, WORKER_LABEL, Recovery

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from prefect.client.orchestration import PrefectClient

    from mloc_prefect.worker.view import WorkersView

logger = logging.getLogger("prefect.mloc.worker")

HEARTBEAT = "prefect.flow-run.heartbeat"
_LOOK_SECONDS = 60.0
_SILENT_SECONDS = 600.0
_ONCE_SECONDS = 3600.0  # after a single heartbeat, which does not tell how often it beats
_BEATS = 3


class Orphans:
    """Looks for runs of users whose worker is gone.

    Args:
        client: Open client.
        pool: Name of the pool.
        view: All workers; somebody else looks.
        clock: Seconds, never going back.
    """

    def __init__(
        self, client: PrefectClient, pool: str, view: WorkersView, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client, self._pool, self._view, self._clock = client, pool, view, clock
        self._recovery = Recovery(client, 0)
        self._silent: dict[str, tuple[str, float]] = {}  # the last heartbeat of each run, and since when it is the last
        self._looked = clock()

    async def watch(self) -> None:
        """Look and act until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await self.look()
            except httpx.HTTPError as error:
                logger.info("no look for runs of lost workers this time: %s", str(error) or type(error).__name__)

    async def look(self) -> list[str]:
        """Look once; return the ids of the runs that were marked as crashed.

        Raises:
            httpx.HTTPError: The server does not answer.
        """
        now = self._clock()
        if now - self._looked > _BEATS * _LOOK_SECONDS:  # we, or the server, were away: nothing could be heard
            self._silent.clear()
        silent: dict[str, tuple[str, float]] = {}
        crashed = []
        for run in await self._without_worker():
            beats = await self._beats(run["id"])
            if not beats:  # it sends none, so its silence means nothing
                continue
            last, since = self._silent.get(run["id"], ("", now))
            silent[run["id"]] = (beats[0]["id"], since if last == beats[0]["id"] else now)
            if now - silent[run["id"]][1] >= _patience(beats):
                logger.warning("run %s has been silent for long, and its worker is gone: crashed", run["name"])
                await self._recovery.crash(run, f"worker {run['labels'][WORKER_LABEL]} was lost, and this run with it")
                crashed.append(str(run["id"]))
        self._silent, self._looked = silent, now
        return crashed

    async def _without_worker(self) -> list[dict[str, Any]]:
        live = {(card.id, card.incarnation) for card in self._view.live}
        found = []
        for run in await self._recovery.of_users(self._pool):
            labels = run.get("labels") or {}
            worker, incarnation = labels.get(WORKER_LABEL), labels.get(INCARNATION_LABEL)
            if worker and incarnation and (worker, incarnation) not in live:
                found.append(run)
        return found

    async def _beats(self, run_id: str) -> Sequence[dict[str, Any]]:
        """Return the last two heartbeats of a run, the newest first."""
        page = await ask(self._client, "POST", "/events/filter", {"filter": heartbeats_of(run_id), "limit": 2})
        return (page or {}).get("events") or ()


def heartbeats_of(run_id: str) -> dict[str, Any]:
    """Return the filter of events for the heartbeats of a run."""
    return {"event": {"name": [HEARTBEAT]}, "resource": {"id": [f"prefect.flow-run.{run_id}"]}, "order": "DESC"}


def _patience(beats: Sequence[dict[str, Any]]) -> float:
    """Return the seconds of silence that mean an end: three of its own heartbeats, ten minutes at least."""
    if len(beats) == 1:
        return _ONCE_SECONDS
    at = [datetime.fromisoformat(beat["occurred"]).timestamp() for beat in beats]
    return max(_SILENT_SECONDS, _BEATS * (at[0] - at[-1]))
