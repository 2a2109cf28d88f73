"""Runs of users' own flows whose worker was lost: they are marked as crashed once they are silent too.

Each runs in a process of its own, which may outlive its worker, and cannot be seen from another machine. But Prefect's
engine sends an event every few minutes for as long as it runs a flow, unless that is switched off
(`PREFECT_FLOWS_HEARTBEAT_FREQUENCY`). Clocks of different machines are not compared: our own times the silence.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import httpx

from mloc_prefect.cluster.run_recovery import RecoveryCause, RunRecovery
from mloc_prefect.errors import reason
from mloc_prefect.prefect_ext.requests import ask
from mloc_prefect.prefect_ext.run_facts import INCARNATION_LABEL, WORKER_LABEL
from mloc_prefect.prefect_ext.state_reasons import StateCode, StateReason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from prefect.client.orchestration import PrefectClient

    from mloc_prefect.cluster.cluster_view import ClusterView

logger = logging.getLogger("prefect.mloc.worker")

HEARTBEAT = "prefect.flow-run.heartbeat"
_CHECK_SECONDS = 60.0
_SILENT_SECONDS = 600.0
_ONCE_SECONDS = 3600.0  # after a single heartbeat, which does not tell how often it beats
_BEATS = 3


class Orphans:
    """Finds runs of users whose worker was lost, and marks the silent ones as crashed.

    Args:
        client: Open client.
        pool: Name of the pool.
        view: All workers; its owner refreshes it.
        clock: Seconds, never going back.
    """

    def __init__(
        self, client: PrefectClient, pool: str, view: ClusterView, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client, self._pool, self._view, self._clock = client, pool, view, clock
        self._recovery = RunRecovery(client, 0)
        self._silent: dict[str, tuple[str, float]] = {}  # the last heartbeat of each run, and since when it is the last
        self._checked = clock()

    async def watch(self) -> None:
        """Check every minute until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            try:
                await self.check()
            except httpx.HTTPError as error:
                logger.info("could not check for runs of lost workers, will retry: %s", reason(error))

    async def check(self) -> list[str]:
        """Check once; return the ids of the runs that were marked as crashed.

        Raises:
            httpx.HTTPError: The server does not answer.
        """
        now = self._clock()
        if (
            now - self._checked > _BEATS * _CHECK_SECONDS
        ):  # this process, or the server, was away: no heartbeat could be read
            self._silent.clear()
        silent: dict[str, tuple[str, float]] = {}
        crashed = []
        for run in await self._without_worker():
            beats = await self._beats(run["id"])
            if not beats:  # it sends none, so silence means nothing
                continue
            last, since = self._silent.get(run["id"], ("", now))
            silent[run["id"]] = (beats[0]["id"], since if last == beats[0]["id"] else now)
            if now - silent[run["id"]][1] >= _patience(beats):
                logger.warning("run %s is silent and its worker was lost: marking it as crashed", run["name"])
                await self._recovery.crash(run, _cause(run["labels"]))
                crashed.append(str(run["id"]))
        self._silent, self._checked = silent, now
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


def _cause(labels: Mapping[str, Any]) -> RecoveryCause:
    worker = labels[WORKER_LABEL]
    return RecoveryCause(
        f"worker {worker} was lost, and this run with it",
        StateReason(StateCode.WORKER_LOST, worker, labels[INCARNATION_LABEL]),
    )


def _patience(beats: Sequence[dict[str, Any]]) -> float:
    """Return the seconds of silence that mean an end: three of its own heartbeats, ten minutes at least."""
    if len(beats) == 1:
        return _ONCE_SECONDS
    at = [datetime.fromisoformat(beat["occurred"]).timestamp() for beat in beats]
    return max(_SILENT_SECONDS, _BEATS * (at[0] - at[-1]))
