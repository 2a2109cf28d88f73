"""The runs of a worker that is gone: which they are, and what becomes of each."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import httpx

from mloc_prefect.errors import reason
from mloc_prefect.orchestrate.api import ask
from mloc_prefect.orchestrate.deployments import RUN_STAGE, RUN_WORKFLOW
from mloc_prefect.orchestrate.lost import stopped_starts, with_stop
from mloc_prefect.orchestrate.shard_runs import SHARD_FLOW
from mloc_prefect.worker.identity import Process
from mloc_prefect.worker.leases import start_mark

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient

    from mloc_prefect.worker.card import WorkerCard

logger = logging.getLogger("prefect.mloc.worker")

WORKER_LABEL, INCARNATION_LABEL = "prefect.worker.name", "mloc.incarnation"
_ACTIVE = ["RUNNING", "PENDING", "CANCELLING"]
_PAGE = 200
_OURS = frozenset({RUN_WORKFLOW.flow, RUN_STAGE.flow})


def taken_by(worker: str, incarnation: str) -> str:
    """Return the message of a Pending run that says who took it: its labels do not say it yet."""
    return f"taken by {worker} ({incarnation})"


class Recovery:
    """Recovers runs.

    Args:
        client: Open client.
        max_retries: How often a root run is started again after its worker was lost.
    """

    def __init__(self, client: PrefectClient, max_retries: int) -> None:
        self._client = client
        self._max_retries = max_retries
        self._flows: dict[str, str | None] = {}

    async def recover(self, card: WorkerCard) -> None:
        """Take care of all runs of a worker that is gone.

        Raises:
            httpx.HTTPError: The server does not answer; a second call goes on.
        """
        lost = f"worker {card.id} was lost"
        pool = _of_pool(card.pool)
        runs = [*await self._active(pool), *await self._half_done(pool, lost)]
        for run in [run for run in runs if _is_of(run, card)]:
            state, flow = run["state"]["type"], await self._flow(run["flow_id"])
            if flow == RUN_WORKFLOW.flow:
                await self.start_again(run, lost)
            elif flow == RUN_STAGE.flow:
                await self._stage_lost(run, lost)
            elif state == "PENDING" and not run.get("infrastructure_pid"):
                await self._put_back(run, lost)
            elif _seen_dead(run, card):
                await self._set(run["id"], "CRASHED", "Crashed", lost)
            else:  # a process of its own, which may well go on without the worker; see `orphans`
                logger.warning("run %s of a flow that is not ours is left as it is: %s", run["name"], lost)

    async def put_back(self, card: WorkerCard, why: str, *, only: Collection[UUID] | None = None) -> set[str]:
        """Schedule again what a worker has taken and not begun.

        Args:
            card: The worker: one that is being stopped, unless `only` names runs.
            why: Message of their states.
            only: Runs, or None for all.

        Returns:
            Ids of those that were Pending.

        Raises:
            httpx.HTTPError: The server does not answer.
        """
        wanted, found = _of_pool(card.pool), set[str]()
        if only is not None:
            wanted |= {"flow_runs": {"id": {"any_": [str(run) for run in only]}}}
        for run in await self._active(wanted):
            if run["state"]["type"] != "PENDING" or not _is_of(run, card):
                continue
            ours = await self._flow(run["flow_id"]) in _OURS
            if ours or not run.get("infrastructure_pid"):  # a process of its own ends after this, and says so
                await self._put_back(run, why)
                found.add(run["id"])
        return found

    async def hand_back(self, card: WorkerCard, ended: Collection[UUID], why: str) -> None:
        """Schedule again what ended because its worker is being stopped, or had not begun; trouble is only logged.

        A run of one attempt that had begun is left to its stage, which begins another one.
        """
        for run_id in ended:
            try:
                run = await ask(self._client, "GET", f"/flow_runs/{run_id}")
                root = run is not None and await self._flow(run["flow_id"]) == RUN_WORKFLOW.flow
                if root and run["state"]["type"] == "CRASHED":
                    await self.start_again(run, why, stopped=True)
            except httpx.HTTPError as error:
                logger.warning("run %s is not scheduled again: %s", run_id, reason(error))
        try:
            await self.put_back(card, why)
        except httpx.HTTPError as error:
            logger.warning("what had not begun stays Pending: %s", reason(error))

    async def of_users(self, pool: str) -> list[dict[str, Any]]:
        """Return the runs of a pool that are Running, of flows that are not ours.

        Raises:
            httpx.HTTPError: The server does not answer.
        """
        running = [run for run in await self._active(_of_pool(pool)) if run["state"]["type"] == "RUNNING"]
        return [run for run in running if await self._flow(run["flow_id"]) not in _OURS]

    async def crash(self, run: Mapping[str, Any], why: str) -> None:
        """Mark a run as crashed, unless it has ended meanwhile."""
        await self._set(run["id"], "CRASHED", "Crashed", why, force=False)

    async def start_again(self, run: Mapping[str, Any], why: str, *, stopped: bool = False) -> None:
        """Mark a root run as crashed, with all below it, and schedule it anew within the budget.

        Its finished stages are found again; each stage that was at work has lost one attempt.

        Args:
            run: The run, as the API gave it.
            why: Message of its states.
            stopped: Its worker was stopped on purpose: that costs neither the run a start nor its stages an attempt.
        """
        if run["state"]["type"] == "PENDING":
            await self._put_back(run, why)
            return
        cancelled = run["state"]["type"] == "CANCELLING"
        for stage in await self._active({"flow_runs": {"parent_flow_run_id": {"any_": [run["id"]]}}}):
            await self._end_attempts(stage["id"], why)
            await self._end(stage["id"], why, cancelled=cancelled)
        if run["state"]["type"] != "CRASHED":
            await self._end(run["id"], why, cancelled=cancelled)
        if cancelled:
            return
        if stopped:
            label = with_stop(run["labels"], run["run_count"])
            await ask(self._client, "PATCH", f"/flow_runs/{run['id']}/labels", label)
            await self._schedule(run["id"], why)
            return
        lost = run["run_count"] - len(stopped_starts(run["labels"]))
        if lost > self._max_retries:
            logger.warning("run %s was lost %d times, it stays crashed", run["name"], lost)
            return
        await self._schedule(run["id"], f"{why}; start {lost + 1} of {self._max_retries + 1}")

    async def _stage_lost(self, run: Mapping[str, Any], why: str) -> None:
        if run["state"]["type"] == "PENDING":
            await self._put_back(run, why)
        else:  # whoever waits for it begins another attempt
            await self._end(run["id"], why, cancelled=run["state"]["type"] == "CANCELLING")

    async def _end_attempts(self, stage_run: str, why: str) -> None:
        """End the runs below a stage: they belong to a start of the root that is over.

        Those at work elsewhere end themselves when asked; shards have ended with the process of their stage.
        """
        runs = {"parent_flow_run_id": {"any_": [stage_run]}, "state": {"type": {"any_": [*_ACTIVE, "SCHEDULED"]}}}
        found = await ask(self._client, "POST", "/flow_runs/filter", {"flow_runs": runs, "limit": _PAGE})
        for attempt in found or ():
            if await self._flow(attempt["flow_id"]) == SHARD_FLOW:
                await self._end(attempt["id"], why, cancelled=False)
                continue
            await self._set(attempt["id"], "CANCELLING", "Cancelling", "its run is started again", force=False)

    async def _put_back(self, run: Mapping[str, Any], why: str) -> None:
        """Schedule a run again that had not begun."""
        if run["state"]["type"] == "CANCELLING":
            await self._end(run["id"], why, cancelled=True)
        else:
            await self._schedule(run["id"], why)

    async def _schedule(self, run_id: str, why: str) -> None:
        # Without this a later cancellation would wait for a process that is no more.
        await ask(self._client, "PATCH", f"/flow_runs/{run_id}", {"infrastructure_pid": None})
        await self._set(run_id, "SCHEDULED", "AwaitingRetry", why)

    async def _end(self, run_id: str, why: str, *, cancelled: bool) -> None:
        kind = ("CANCELLED", "Cancelled") if cancelled else ("CRASHED", "Crashed")
        await self._set(run_id, *kind, why)

    async def _set(self, run_id: str, kind: str, name: str, message: str, *, force: bool = True) -> None:
        body = {"state": {"type": kind, "name": name, "message": message}, "force": force}
        await ask(self._client, "POST", f"/flow_runs/{run_id}/set_state", body)

    async def _active(self, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        """Return runs that are at work, of those wanted."""
        runs = {**wanted.get("flow_runs", {}), "state": {"type": {"any_": _ACTIVE}}}
        found: list[dict[str, Any]] = []
        while True:  # all pages first: what becomes of one moves the others
            body = {**wanted, "flow_runs": runs, "limit": _PAGE, "offset": len(found), "sort": "ID_DESC"}
            page = await ask(self._client, "POST", "/flow_runs/filter", body)
            found += page or ()
            if len(page or ()) < _PAGE:
                return found

    async def _half_done(self, wanted: dict[str, Any], why: str) -> list[dict[str, Any]]:
        """Return root runs that somebody else marked as crashed for the same reason, and then was lost itself."""
        runs = {"state": {"type": {"any_": ["CRASHED"]}}}
        body = {**wanted, "flow_runs": runs, "limit": _PAGE, "sort": "EXPECTED_START_TIME_DESC"}
        page = await ask(self._client, "POST", "/flow_runs/filter", body)
        crashed = [run for run in page or () if run["state"].get("message") == why]
        return [run for run in crashed if await self._flow(run["flow_id"]) == RUN_WORKFLOW.flow]

    async def _flow(self, flow_id: str) -> str | None:
        if flow_id not in self._flows:
            flow = await ask(self._client, "GET", f"/flows/{flow_id}")
            self._flows[flow_id] = flow["name"] if flow else None
        return self._flows[flow_id]


def _of_pool(name: str) -> dict[str, Any]:
    return {"work_pools": {"name": {"any_": [name]}}}


def _is_of(run: Mapping[str, Any], card: WorkerCard) -> bool:
    """Return whether a run belongs to that very process of a worker."""
    if run["state"]["type"] == "PENDING" and run["state"].get("message"):
        return bool(run["state"]["message"] == taken_by(card.id, card.incarnation))
    labels = run.get("labels") or {}
    return labels.get(WORKER_LABEL) == card.id and labels.get(INCARNATION_LABEL) in {None, card.incarnation}


def _seen_dead(run: Mapping[str, Any], card: WorkerCard) -> bool:
    """Return whether the process of a run can be seen to have ended."""
    pid = str(run.get("infrastructure_pid") or "").rpartition(":")[2]
    near = card.process.where == Process.own().where
    return near and pid.isdigit() and start_mark(int(pid)) is None
