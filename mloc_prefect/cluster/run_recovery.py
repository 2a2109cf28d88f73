"""Recovery of the runs of a worker that was lost or is being stopped: which they are, and what becomes of each."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx

from mloc_prefect.cluster.deployments import RUN_STAGE, RUN_WORKFLOW
from mloc_prefect.cluster.identity import WorkerProcess
from mloc_prefect.cluster.worker_card import WorkerCard
from mloc_prefect.errors import reason as reason_text
from mloc_prefect.prefect_ext.requests import ask
from mloc_prefect.prefect_ext.run_facts import (
    INCARNATION_LABEL,
    SHARD_FLOW,
    WORKER_LABEL,
    stopped_starts,
    with_stop,
)
from mloc_prefect.prefect_ext.state_reasons import StateCode, StateReason, reason_of
from mloc_prefect.process.proc import start_mark

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient

logger = logging.getLogger("prefect.mloc.worker")

_ACTIVE = ["RUNNING", "PENDING", "CANCELLING"]
_PAGE = 200
_AT_ONCE = 8  # runs; each takes some requests, one after the other
_OURS = frozenset({RUN_WORKFLOW.flow, RUN_STAGE.flow})


@dataclass(frozen=True, slots=True)
class RecoveryCause:
    """Why runs are recovered; it stands in the states that they get.

    Attributes:
        message: For people.
        reason: For programs, or None.
    """

    message: str
    reason: StateReason | None = None

    @classmethod
    def lost(cls, card: WorkerCard) -> RecoveryCause:
        """Return that a worker was lost."""
        return cls(f"worker {card.id} was lost", StateReason(StateCode.WORKER_LOST, card.id, card.incarnation))

    @classmethod
    def stopped(cls, card: WorkerCard) -> RecoveryCause:
        """Return that a worker was stopped on purpose."""
        return cls(f"worker {card.id} was stopped", StateReason(StateCode.WORKER_STOPPED, card.id, card.incarnation))

    @property
    def on_purpose(self) -> bool:
        """Whether the worker was stopped: that costs neither a run a start nor its stages an attempt."""
        return self.reason is not None and self.reason.code is StateCode.WORKER_STOPPED


_STARTED_AGAIN = RecoveryCause("its run is started again")


class RunRecovery:
    """Recovers runs.

    Args:
        client: Open client.
        max_retries: How often a workflow run is started again after its worker was lost.
    """

    def __init__(self, client: PrefectClient, max_retries: int) -> None:
        self._client = client
        self._max_retries = max_retries
        self._flows: dict[str, str | None] = {}

    async def recover(self, card: WorkerCard, *, only: Collection[UUID] | None = None) -> None:
        """Recover the runs of a lost worker, several at once.

        Args:
            card: The worker.
            only: Runs, or None for all.

        Raises:
            httpx.HTTPError: The server does not answer; a second call continues.
        """
        pool = _of_pool(card.pool)
        if only is not None:
            pool |= {"flow_runs": {"id": {"any_": [str(run) for run in only]}}}
        runs = [*await self._active(pool), *await self._half_recovered(pool, card)]
        turns = asyncio.Semaphore(_AT_ONCE)

        async def recover(run: Mapping[str, Any]) -> None:
            async with turns:
                await self._recover_run(run, card)

        ended = await asyncio.gather(*(recover(run) for run in runs if _is_of(run, card)), return_exceptions=True)
        for error in ended:
            if isinstance(error, BaseException):
                raise error

    async def recover_orphan(self, run: Mapping[str, Any]) -> None:
        """Recover a run whose holder has no card.

        Raises:
            httpx.HTTPError: The server does not answer.
        """
        holder = holder_of(run)
        assert holder is not None  # else no process can be missed
        unseen = WorkerProcess("", 0, "")
        await self._recover_run(run, WorkerCard(id=holder[0], incarnation=holder[1], pool="", process=unseen))

    async def active(self, pool: str, *, older: float, besides: Collection[UUID] = ()) -> list[dict[str, Any]]:
        """Return the runs of a pool that are at work, without those that were to start just now.

        Args:
            pool: Name of the pool.
            older: Seconds, coarsely: clocks may differ.
            besides: Runs that are of no interest: a list of a thousand runs costs the server some seconds.

        Raises:
            httpx.HTTPError: The server does not answer.
        """
        before = (datetime.now(UTC) - timedelta(seconds=older)).isoformat()
        runs: dict[str, Any] = {"expected_start_time": {"before_": before}}
        if besides:
            runs["id"] = {"not_any_": [str(run) for run in besides]}
        return await self._active(_of_pool(pool) | {"flow_runs": runs})

    async def _recover_run(self, listed: Mapping[str, Any], card: WorkerCard) -> None:
        """Recover a run of a list, if it is still that worker's: others may have come first since it was read."""
        run = await ask(self._client, "GET", f"/flow_runs/{listed['id']}")
        half_recovered = listed["state"]["type"] == "CRASHED"
        if run is None or run["state"]["type"] not in ({"CRASHED"} if half_recovered else _ACTIVE):
            return
        if not _is_of(run, card) or (half_recovered and not _lost_with(run, card.id)):
            return
        lost = RecoveryCause.lost(card)
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
            logger.warning("run %s of a flow that is not ours is left as it is: %s", run["name"], lost.message)

    async def put_back(
        self, card: WorkerCard, cause: RecoveryCause, *, only: Collection[UUID] | None = None
    ) -> set[str]:
        """Schedule again what a worker has claimed and not begun.

        Args:
            card: The worker: one that is being stopped, unless `only` names runs.
            cause: Why.
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
                await self._put_back(run, cause)
                found.add(run["id"])
        return found

    async def hand_back(self, card: WorkerCard, ended: Collection[UUID]) -> None:
        """Schedule again what ended because its worker is being stopped, or had not begun; errors are only logged.

        A run of one attempt that had begun is left to its stage, which begins another one.
        """
        stopped = RecoveryCause.stopped(card)
        for run_id in ended:
            try:
                run = await ask(self._client, "GET", f"/flow_runs/{run_id}")
                root = run is not None and await self._flow(run["flow_id"]) == RUN_WORKFLOW.flow
                if root and run["state"]["type"] == "CRASHED":
                    await self.start_again(run, stopped)
            except httpx.HTTPError as error:
                logger.warning("run %s is not scheduled again: %s", run_id, reason_text(error))
        try:
            await self.put_back(card, stopped)
        except httpx.HTTPError as error:
            logger.warning("what had not begun stays Pending: %s", reason_text(error))

    async def of_users(self, pool: str) -> list[dict[str, Any]]:
        """Return the runs of a pool that are Running, of flows that are not ours.

        Raises:
            httpx.HTTPError: The server does not answer.
        """
        running = [run for run in await self._active(_of_pool(pool)) if run["state"]["type"] == "RUNNING"]
        return [run for run in running if await self._flow(run["flow_id"]) not in _OURS]

    async def crash(self, run: Mapping[str, Any], cause: RecoveryCause) -> None:
        """Mark a run as crashed, unless it has ended meanwhile."""
        await self._set(run["id"], "CRASHED", "Crashed", cause, force=False)

    async def start_again(self, run: Mapping[str, Any], cause: RecoveryCause) -> None:
        """Mark a workflow run as crashed, with all below it, and schedule it again within the budget.

        Its finished stages are found again; each stage that was at work has lost one attempt, unless the worker was
        stopped on purpose.

        Args:
            run: The run, as the API gave it.
            cause: Why.
        """
        if run["state"]["type"] == "PENDING":
            await self._put_back(run, cause)
            return
        cancelled = run["state"]["type"] == "CANCELLING"
        for stage in await self._active({"flow_runs": {"parent_flow_run_id": {"any_": [run["id"]]}}}):
            await self._end_attempts(stage["id"], cause)
            await self._end(stage["id"], cause, cancelled=cancelled)
        if run["state"]["type"] != "CRASHED":
            await self._end(run["id"], cause, cancelled=cancelled)
        if cancelled:
            return
        if cause.on_purpose:
            label = with_stop(run["labels"], run["run_count"])
            await ask(self._client, "PATCH", f"/flow_runs/{run['id']}/labels", label)
            await self._schedule(run["id"], cause)
            return
        lost = run["run_count"] - len(stopped_starts(run["labels"]))
        if lost > self._max_retries:
            logger.warning("run %s was lost %d times, it stays crashed", run["name"], lost)
            return
        message = f"{cause.message}; start {lost + 1} of {self._max_retries + 1}"
        await self._schedule(run["id"], replace(cause, message=message))

    async def _stage_lost(self, run: Mapping[str, Any], cause: RecoveryCause) -> None:
        if run["state"]["type"] == "PENDING":
            await self._put_back(run, cause)
        else:  # the stage that waits for it begins another attempt
            await self._end(run["id"], cause, cancelled=run["state"]["type"] == "CANCELLING")

    async def _end_attempts(self, stage_run: str, cause: RecoveryCause) -> None:
        """End the runs below a stage: they belong to a start of the root that is over.

        Those at work elsewhere end themselves when asked; shards have ended with the process of their stage.
        """
        runs = {"parent_flow_run_id": {"any_": [stage_run]}, "state": {"type": {"any_": [*_ACTIVE, "SCHEDULED"]}}}
        found = await ask(self._client, "POST", "/flow_runs/filter", {"flow_runs": runs, "limit": _PAGE})
        for attempt in found or ():
            if await self._flow(attempt["flow_id"]) == SHARD_FLOW:
                await self._end(attempt["id"], cause, cancelled=False)
                continue
            await self._set(attempt["id"], "CANCELLING", "Cancelling", _STARTED_AGAIN, force=False)

    async def _put_back(self, run: Mapping[str, Any], cause: RecoveryCause) -> None:
        """Schedule a run again that had not begun."""
        if run["state"]["type"] == "CANCELLING":
            await self._end(run["id"], cause, cancelled=True)
        else:
            await self._schedule(run["id"], cause)

    async def _schedule(self, run_id: str, cause: RecoveryCause) -> None:
        # Without this a later cancellation would wait for a process that is no more.
        await ask(self._client, "PATCH", f"/flow_runs/{run_id}", {"infrastructure_pid": None})
        await self._set(run_id, "SCHEDULED", "AwaitingRetry", cause)

    async def _end(self, run_id: str, cause: RecoveryCause, *, cancelled: bool) -> None:
        kind = ("CANCELLED", "Cancelled") if cancelled else ("CRASHED", "Crashed")
        await self._set(run_id, *kind, cause)

    async def _set(self, run_id: str, kind: str, name: str, cause: RecoveryCause, *, force: bool = True) -> None:
        state: dict[str, Any] = {"type": kind, "name": name, "message": cause.message}
        if cause.reason is not None:
            state["state_details"] = cause.reason.as_details()
        body = {"state": state, "force": force}
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

    async def _half_recovered(self, wanted: dict[str, Any], card: WorkerCard) -> list[dict[str, Any]]:
        """Return workflow runs that another process marked as crashed for this worker, and then was lost itself."""
        runs = {**wanted.get("flow_runs", {}), "state": {"type": {"any_": ["CRASHED"]}}}
        body = {**wanted, "flow_runs": runs, "limit": _PAGE, "sort": "EXPECTED_START_TIME_DESC"}
        page = await ask(self._client, "POST", "/flow_runs/filter", body)
        crashed = [run for run in page or () if _lost_with(run, card.id)]
        return [run for run in crashed if await self._flow(run["flow_id"]) == RUN_WORKFLOW.flow]

    async def _flow(self, flow_id: str) -> str | None:
        if flow_id not in self._flows:
            flow = await ask(self._client, "GET", f"/flows/{flow_id}")
            self._flows[flow_id] = flow["name"] if flow else None
        return self._flows[flow_id]


def _of_pool(name: str) -> dict[str, Any]:
    return {"work_pools": {"name": {"any_": [name]}}}


def holder_of(run: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return id and incarnation of the worker that has a run, as the API gave it; None when it does not say."""
    reason = reason_of(run["state"])
    if run["state"]["type"] == "PENDING":
        claimed = reason is not None and reason.code is StateCode.CLAIMED
        return (reason.worker, reason.incarnation) if reason is not None and claimed else None
    labels = run.get("labels") or {}
    worker, incarnation = labels.get(WORKER_LABEL), labels.get(INCARNATION_LABEL)
    return (str(worker), str(incarnation)) if worker and incarnation else None


def _is_of(run: Mapping[str, Any], card: WorkerCard) -> bool:
    """Return whether a run belongs to that very process of a worker."""
    reason = reason_of(run["state"])
    if run["state"]["type"] == "PENDING" and (reason is not None or run["state"].get("message")):
        return reason == StateReason(StateCode.CLAIMED, card.id, card.incarnation)
    labels = run.get("labels") or {}
    return labels.get(WORKER_LABEL) == card.id and labels.get(INCARNATION_LABEL) in {None, card.incarnation}


def _lost_with(run: Mapping[str, Any], worker: str) -> bool:
    """Return whether a run was marked as crashed because this worker was lost."""
    reason = reason_of(run["state"])
    return reason is not None and (reason.code, reason.worker) == (StateCode.WORKER_LOST, worker)


def _seen_dead(run: Mapping[str, Any], card: WorkerCard) -> bool:
    """Return whether the process of a run can be seen to have ended."""
    pid = str(run.get("infrastructure_pid") or "").rpartition(":")[2]
    near = card.process.where == WorkerProcess.own().where
    return near and pid.isdigit() and start_mark(int(pid)) is None
