"""`OriginalDispatcher`: attempts at workers that speak the original protocol over Redis. [protocol 2.4, 3].

Such a worker is told of its task by a message that may be lost, says how it ended by another one, and leaves its
result in the shared results root or posts it. It cannot be told to stop: after a cancellation or a timeout it works on
to the end of its task, gets nothing else meanwhile, and what it then says is not heard.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mloc_prefect.bridge.original_choice import Weights, choose_worker
from mloc_prefect.bridge.original_claim import Claim, End, Times, works_at
from mloc_prefect.bridge.original_hub import Hub
from mloc_prefect.bridge.original_results import ResultPlace, says_failed
from mloc_prefect.bridge.original_roster import Roster
from mloc_prefect.bridge.original_rows import exact_spec
from mloc_prefect.errors import ExecutionError, StoreError
from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionFailure, ExecutionResult

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from mloc_prefect.bridge.original_choice import Choice
    from mloc_prefect.bridge.records import WorkerRecord
    from mloc_prefect.bridge.stores import Stores
    from mloc_prefect.orchestrate.dispatch import StageJob
    from mloc_prefect.plan.model import ResourceRequest
    from mloc_prefect.settings import MlocSettings

_log = logging.getLogger(__name__)
_REMEMBERED = 1000
_MOVES = 1
"""Times that an attempt goes on at another worker when its own has gone."""


@asynccontextmanager
async def original_workers(settings: MlocSettings) -> AsyncIterator[OriginalDispatcher | None]:
    """Yield the dispatcher of this site; None without Redis, or when only workers of ours may be used."""
    if settings.redis_url is None or settings.dispatch == "ours":
        yield None
        return
    from mloc_prefect.bridge.stores import open_stores

    stores = open_stores(settings.redis_url)
    dispatcher = OriginalDispatcher.of(stores, settings)
    try:
        yield dispatcher
    finally:
        await dispatcher.close()
        await stores.close()


class OriginalDispatcher:
    """Runs attempts at workers of the original protocol; a `StageDispatcher` for one event loop.

    Args:
        stores: Registry, messages, leases.
        root: Results root that the workers, or the endpoint that they post to, share with us.
        times: Waiting times.
        weights: When the best worker is looked for.
    """

    def __init__(
        self, stores: Stores, root: Path, times: Times | None = None, *, weights: Weights | None = None
    ) -> None:
        self._stores = stores
        self._weights = weights or Weights()
        self._root = root
        self._times = times or Times()
        self._hub = Hub(stores.publisher)
        self._roster = Roster(stores.workers, self._times.acknowledge)
        self._waiting = 0
        self._failed: dict[str, set[str]] = {}
        self._left: set[asyncio.Task[None]] = set()

    @classmethod
    def of(cls, stores: Stores, settings: MlocSettings) -> OriginalDispatcher:
        """Return the one of a site with these settings."""
        return cls(stores, settings.results_root, weights=Weights.of(settings))

    async def dispatch(self, job: StageJob, *, on_event: Callable[[ExecutionEvent], None]) -> ExecutionResult:
        """See `StageDispatcher`. A worker that vanishes costs the attempt only when no other one is free."""
        spec = await asyncio.to_thread(exact_spec, job.request)
        job = replace(job, request=replace(job.request, spec=spec))
        trial = _Trial(job, on_event, await self._failed_before(job))
        while True:
            try:
                await self._hub.listening()
                claim = await self._place(trial)
                result = await self._run(claim, trial)
            except StoreError as error:
                trial.wait(error.message)
                await asyncio.sleep(self._times.look)
                continue
            if result is not None:
                return result

    async def choice(self, resources: ResourceRequest) -> Choice:
        """Return which workers could take such a task now, and in words why none can.

        Raises:
            StoreError: The registry cannot be reached.
        """
        workers = await self._roster.workers()
        return choose_worker(
            workers, resources, demand=self._waiting + 1, engaged=self._hub.followed, weights=self._weights
        )

    async def close(self) -> None:
        """Stop to listen; workers that still work at a task nobody waits for are not followed any longer."""
        if self._left:
            await asyncio.wait(self._left, timeout=self._times.close)
        for task in self._left:
            task.cancel()
        await asyncio.gather(*self._left, return_exceptions=True)
        await self._hub.close()

    async def _failed_before(self, job: StageJob) -> set[str]:
        """Return where earlier attempts of the task failed: as remembered, else as its record says."""
        task_id = job.request.task_id
        if task_id not in self._failed and job.request.attempt > 1:
            try:
                record = await self._stores.tasks.get(task_id)
            except StoreError:
                record = None
            if record is not None and record.last_failed_worker:
                self._remember(task_id, record.last_failed_worker)
        return self._failed.get(task_id, set())

    def _remember(self, task_id: str, worker_id: str) -> None:
        self._failed.setdefault(task_id, set()).add(worker_id)
        if len(self._failed) > _REMEMBERED:
            del self._failed[next(iter(self._failed))]

    async def _place(self, trial: _Trial) -> Claim:
        """Return a claim on a worker, once there is one."""
        self._waiting += 1
        try:
            while True:
                workers = await self._roster.workers()
                engaged = self._hub.followed | trial.resting(asyncio.get_running_loop().time())
                choice = choose_worker(
                    workers,
                    trial.job.resources,
                    demand=self._waiting,
                    avoid=trial.avoid,
                    engaged=engaged,
                    weights=self._weights,
                )
                resumed = [w for w in workers if not w.stale and works_at(w, trial.task_id)]
                for worker in (*resumed, *choice.ready):
                    claim = await self._claim(worker, trial) if worker.worker_id not in self._hub.followed else None
                    if claim is not None:
                        return claim
                trial.wait(choice.why or "the workers that fit have just been taken")
                await self._hub.wait(self._times.again if trial.rest else self._times.look)
        finally:
            self._waiting -= 1

    async def _claim(self, worker: WorkerRecord, trial: _Trial) -> Claim | None:
        holder = f"{trial.task_id} {uuid4().hex[:8]}"
        claim = Claim(
            stores=self._stores,
            hub=self._hub,
            worker=worker,
            task_id=trial.task_id,
            holder=holder,
            times=self._times,
        )
        try:
            if await claim.take() and await self._still_there(claim):
                return claim
        except BaseException:
            await asyncio.shield(claim.release())
            raise
        trial.rest[worker.worker_id] = asyncio.get_running_loop().time() + self._times.again
        await claim.release()
        return None

    async def _still_there(self, claim: Claim) -> bool:
        """Return whether the worker, now that nobody else takes it, is still free or at this very task."""
        now = await self._roster.worker(claim.worker_id)
        if now is None or now.stale or not (now.status == "IDLE" or works_at(now, claim.task_id)):
            return False
        claim.worker, claim.begun = now, works_at(now, claim.task_id)
        return True

    async def _run(self, claim: Claim, trial: _Trial) -> ExecutionResult | None:
        """Run the attempt at one worker; None when it has to go on at another one."""
        place = ResultPlace.of(trial.job.request, self._root)
        given = False
        try:
            if not claim.begun and not await claim.give(trial.job):
                self._lost(claim, trial, f"nobody heard the message for worker {claim.worker_id}")
                return None
            given = True
            trial.placed(claim.worker_id)
            end = await claim.follow(trial.job.timeout, lambda: trial.placed(claim.worker_id, begun=True))
            given = end.how == "overdue"
            return await self._ended(end, claim, trial, place)
        finally:
            if given:  # cancelled, or overdue: the worker is still at it
                self._leave(claim)
            else:
                await asyncio.shield(claim.release())

    async def _ended(self, end: End, claim: Claim, trial: _Trial, place: ResultPlace) -> ExecutionResult | None:
        if end.how == "lost":
            await claim.set_idle()
            self._lost(claim, trial, end.text)
            return None
        result = await place.wait(self._times.result) if end.how in {"succeeded", "silent"} else None
        if end.how == "succeeded" or (result is not None and says_failed(result) is None):
            await claim.set_idle()
            return self._result(result, claim, trial, place)
        self._remember(trial.task_id, claim.worker_id)
        if end.how == "vanished" and await self._moves(trial):
            trial.log(f"{end.text}; the attempt goes on at another worker")
            return None
        text = says_failed(result) or end.text
        kind = {"vanished": "exited", "overdue": "timeout"}.get(end.how, "error")
        raise ExecutionError(text, failure=ExecutionFailure(text, kind=kind))  # type: ignore[arg-type]  # of the table

    async def _moves(self, trial: _Trial) -> bool:
        trial.moves += 1
        trial.avoid = self._failed.get(trial.task_id, set())
        if trial.moves > _MOVES:
            return False
        ready = choose_worker(await self._roster.workers(fresh=True), trial.job.resources).ready
        return any(worker.worker_id not in trial.avoid for worker in ready)

    def _lost(self, claim: Claim, trial: _Trial, text: str) -> None:
        trial.log(f"{text}; the task is sent again")
        trial.rest[claim.worker_id] = asyncio.get_running_loop().time() + self._times.again

    def _result(self, result: Any, claim: Claim, trial: _Trial, place: ResultPlace) -> ExecutionResult:
        if result is None:
            trial.log(f"worker {claim.worker_id} left its result in a directory of its own", level="warning")
            result = _elsewhere(claim.worker_id)
            place.put(result)
        summary = {"engine": "original", "worker": claim.worker_id}
        if isinstance(result, dict) and isinstance(result.get("model"), str):
            summary["model"] = result["model"]
        self._failed.pop(trial.task_id, None)
        return ExecutionResult(str(place.keep(result)), summary=summary, delivered=place.in_place())

    def _leave(self, claim: Claim) -> None:
        """Keep the claim while the worker works at what nobody waits for."""
        task = asyncio.create_task(self._outlive(claim), name=f"left at {claim.worker_id}")
        self._left.add(task)
        task.add_done_callback(self._left.discard)

    async def _outlive(self, claim: Claim) -> None:
        try:
            end = await claim.follow(None)
            _log.info("task %s at worker %s, for which nobody waits: %s", claim.task_id, claim.worker_id, end.how)
            if end.how in {"succeeded", "silent", "lost"}:
                await claim.set_idle()
        finally:
            await asyncio.shield(claim.release())


@dataclass(slots=True)
class _Trial:
    """One attempt, wherever it goes."""

    job: StageJob
    on_event: Callable[[ExecutionEvent], None]
    avoid: set[str]
    rest: dict[str, float] = field(default_factory=dict)
    moves: int = 0
    _reason: str | None = None

    @property
    def task_id(self) -> str:
        return self.job.request.task_id

    def resting(self, now: float) -> set[str]:
        """Return the workers that a message was just lost on, or that others have."""
        self.rest = {worker_id: until for worker_id, until in self.rest.items() if now < until}
        return set(self.rest)

    def wait(self, reason: str) -> None:
        if reason != self._reason:
            self._reason = reason
            self._say("waiting", reason=reason)

    def placed(self, worker_id: str, *, begun: bool = False) -> None:
        self._reason = None
        self._say("placed", worker=worker_id, protocol="original", flow_run=None, begun=begun)

    def log(self, message: str, level: str = "info") -> None:
        self._say("log", message=message, level=level)

    def _say(self, kind: Any, **data: Any) -> None:
        self.on_event(ExecutionEvent(kind, data, time.time()))


def _elsewhere(worker_id: str) -> dict[str, Any]:
    return {
        "ok": True,
        "worker_id": worker_id,
        "note": "the worker succeeded and kept its result in its own RESULTS_DIR, which is not shared with this site; "
        "share that directory, or give the task an http destination",
    }
