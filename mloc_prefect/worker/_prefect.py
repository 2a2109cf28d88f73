"""Every private or patched piece of Prefect that the warm worker stands on, in one place.

`tests/unit/test_prefect_contract.py` checks each of them against the installed Prefect, so that an upgrade that moves
one fails there and not at a user's.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from prefect import flow_engine
from prefect._flow_run_suspension import register_flow_run_suspension_request
from prefect.exceptions import Abort
from prefect.flow_engine import AsyncFlowRunEngine

from mloc_prefect.orchestrate.lost import STOPPED
from mloc_prefect.orchestrate.outage import until_answered

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator
    from uuid import UUID

    from prefect.client.schemas.objects import FlowRun, State
    from prefect.flows import Flow
    from prefect.workers.base import BaseWorker

    Worker = BaseWorker[Any, Any, Any]

_T = TypeVar("_T")
_UNDER_WAY_SECONDS = 15.0

__all__ = [
    "CancelSwitch",
    "WarmEngine",
    "being_submitted",
    "is_synced",
    "not_submitted",
    "note_poll",
    "run_warm",
    "signals_left_alone",
    "without_limit",
]


@dataclass(slots=True)
class CancelSwitch:
    """What the run and those who may end it know of each other.

    Attributes:
        requested: Its end was asked for and is no crash.
        abandoned: It was given to another worker: it ends without a word.
        stopped: Its worker ends on purpose: it ends as crashed, and says why.
        ended: Its end was reported.
        run_count: Start of the run that this is; 0 before it began.
    """

    requested: bool = False
    abandoned: bool = False
    stopped: bool = False
    ended: bool = False
    run_count: int = 0

    def is_of(self, flow_run: FlowRun) -> bool:
        """Return whether this start of the run is the current one, by what the API says of the run."""
        given_up = flow_run.state is not None and (flow_run.state.is_crashed() or flow_run.state.is_scheduled())
        return not self.abandoned and not given_up and flow_run.run_count == self.run_count


@dataclass
class WarmEngine(AsyncFlowRunEngine[Any, Any]):
    """Prefect's async engine for a run that shares a process with others.

    Five things differ from the stock engine. A run that is cancelled ends Cancelled, not Crashed: nobody outside the
    process is there to say so. And it starts no suspension observer, a thread with a websocket on which the stock
    engine blocks the event loop for every run of a deployment; nor a thread for its heartbeats: the worker has one for
    all. It reports no end when the run was given to another worker meanwhile. And it waits for a server that is away: a
    run whose work is done would stay Running for ever.
    """

    switch: CancelSwitch = field(default_factory=CancelSwitch)

    @contextlib.contextmanager
    def setup_flow_run_suspension_request(self) -> Iterator[Any]:
        """Register the run for suspension requests of this process, without watching for those of others."""
        assert self.flow_run is not None
        request = self._get_flow_run_suspension_request()
        with register_flow_run_suspension_request(self.flow_run.id, request):
            request.raise_if_requested()
            yield request

    @property
    def heartbeat_seconds(self) -> int | None:
        """Seconds between heartbeats: none."""
        return None

    async def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        """Propose a state; see the class."""
        if self.switch.abandoned or (state.is_final() and not await self._answered(self._is_ours)):
            raise Abort("it was started again elsewhere")
        if self.switch.stopped and state.is_crashed():  # else whoever waits for it takes its worker for lost
            state = state.model_copy(update={"message": STOPPED})
        propose = super().set_state
        new = await self._answered(lambda: _whole(propose(state, force)))
        self.switch.ended = new.is_final()
        return new

    async def _answered(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Return what `call` does; call it until the server answers, unless the run ends before its time."""
        if self.switch.requested or self.switch.stopped or self.switch.abandoned:
            return await call()
        return await until_answered(call, f"run {self.flow_run.name!r}" if self.flow_run else "a run")

    async def _is_ours(self) -> bool:
        assert self.flow_run is not None
        now = await self.client.read_flow_run(self.flow_run.id)
        ended = now.state is not None and now.state.is_final()  # by hand: that stays
        return not ended and (self.switch.is_of(now) or not self.switch.run_count)

    async def handle_crash(self, exc: BaseException) -> None:
        """Report the end that was asked for as a cancellation."""
        if self.switch.requested:
            await self.handle_cancellation(exc)
        else:
            await super().handle_crash(exc)


async def _whole(request: Coroutine[Any, Any, _T]) -> _T:
    """Wait for the answer to a request that is under way even when cancelled, and be cancelled then.

    The server may carry out a request whose sender has gone: a run that is taken for Pending, and given back, would
    become Running a moment later, and nobody's.
    """
    task = asyncio.ensure_future(request)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=_UNDER_WAY_SECONDS)
        task.cancel()  # it waits for a time, or for a server that is away
        if task.done() and not task.cancelled():
            task.exception()  # looked at, else asyncio tells of it
        raise


@contextlib.contextmanager
def signals_left_alone() -> Iterator[None]:
    """Keep Prefect's engines from taking SIGTERM for themselves while a flow runs.

    That is right for a process of one run, but here the signal means the worker, and would end its loop anywhere.
    """
    stock = {"capture_sigterm": vars(flow_engine)["capture_sigterm"]}
    vars(flow_engine).update(capture_sigterm=contextlib.nullcontext)
    try:
        yield
    finally:
        vars(flow_engine).update(stock)


async def run_warm(flow: Flow[..., Any], flow_run: FlowRun, switch: CancelSwitch) -> bool:
    """Run `flow` for `flow_run` in this loop; returns whether a final state was reported to the API.

    Cancel the task that awaits this at most once, after setting `switch`: a second cancellation would interrupt the
    report of the first.
    """
    parameters = flow_engine._flow_parameters(flow, flow_run, None)
    engine = WarmEngine(flow=flow, flow_run=flow_run, parameters=parameters, switch=switch)
    async with engine.start():
        while engine.is_running():
            async with engine.run_context():
                switch.run_count = engine.flow_run.run_count if engine.flow_run else 0  # as read after it began
                await engine.call_flow_fn()  # type: ignore[unused-coroutine] # its annotation is a Coroutine too many
    return engine.flow_run is not None and engine.flow_run.state is not None and engine.flow_run.state.is_final()


def is_synced(worker: Worker) -> bool:
    """Return whether a worker knows its pool by now."""
    return worker._has_successfully_synced


def being_submitted(worker: Worker) -> Collection[UUID]:
    """Return the runs that a worker has taken from a poll and not started yet: a view that moves."""
    return worker._submitting_flow_run_ids


def not_submitted(worker: Worker, flow_run_id: UUID, *, runs: bool) -> None:
    """Let a worker forget a run that it was submitting, whatever came of it; a second time nothing happens.

    Args:
        worker: The worker.
        flow_run_id: The run.
        runs: It runs here, and keeps its slot.
    """
    worker._submitting_flow_run_ids.discard(flow_run_id)
    if worker._cancelling_observer is not None:
        worker._cancelling_observer.remove_in_flight_flow_run_id(flow_run_id)
    if not runs:
        worker._release_limit_slot(flow_run_id)


def note_poll(worker: Worker) -> None:
    """Tell the health check of a worker that it polls."""
    worker._last_polled_time = datetime.now(UTC)


@contextlib.contextmanager
def without_limit(worker: Worker) -> Iterator[None]:
    """Let a worker submit runs that take no slot of its limit; for the length of a block without a pause."""
    limiter, worker._limiter = worker._limiter, None
    try:
        yield
    finally:
        worker._limiter = limiter
