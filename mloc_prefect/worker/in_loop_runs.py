"""Runs of our own flows in the worker's event loop: no process to start, no imports, and hosts stay warm."""

from __future__ import annotations

import asyncio
import importlib
import logging
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import anyio
import httpx
from prefect.exceptions import Abort, Pause, PrefectException
from prefect.flows import Flow
from prefect.states import Cancelled, Crashed

from mloc_prefect.errors import reason
from mloc_prefect.flow.dispatcher import use_dispatcher
from mloc_prefect.prefect_ext.engine import run_scheduled
from mloc_prefect.prefect_ext.run_control import RunContext, RunSwitch, WorkflowRunReader, use_run_context
from mloc_prefect.prefect_ext.run_facts import STOPPED
from mloc_prefect.prefect_ext.state_reasons import StateCode, StateReason, with_reason
from mloc_prefect.prefect_ext.worker_internals import signals_left_alone

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, State
    from prefect.client.schemas.responses import DeploymentResponse

    from mloc_prefect.flow.dispatcher import StageDispatcher
    from mloc_prefect.prefect_ext.cancel_watch import CancelWatch

logger = logging.getLogger("prefect.mloc.worker")

_PACKAGE = "mloc_prefect."
_SETTLE_SECONDS = 20.0


def own_flow(deployment: DeploymentResponse) -> Flow[..., Any] | None:
    """Return the flow of a deployment that may run in the worker's loop, or None.

    That is: an async flow, named by its module path, inside the installed `mloc_prefect`. Everything else (files,
    pull steps, users' flows, sync flows, which would block the loop) belongs in a process of its own.
    """
    entrypoint = deployment.entrypoint or ""
    if deployment.pull_steps or ":" in entrypoint or not entrypoint.startswith(_PACKAGE):
        return None
    module, _, name = entrypoint.rpartition(".")
    try:
        flow = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        logger.warning("deployment %s: %s is not in this mloc_prefect: %s", deployment.name, entrypoint, error)
        return None
    return flow if isinstance(flow, Flow) and flow.isasync and not flow.isgenerator else None


@dataclass(slots=True)
class _Run:
    """One run.

    Attributes:
        task: Runs it.
        switch: Why it ends before its time.
        cancelled: Its task was cancelled; a second time would interrupt the report of the first.
        left: Set when no further request is made for it.
    """

    task: asyncio.Task[bool]
    switch: RunSwitch
    cancelled: bool = False
    left: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self) -> None:
        """Cancel it, unless that was done or it has reported its end."""
        if not (self.cancelled or self.switch.ended):
            self.cancelled = True
            self.task.cancel()


async def _is_held() -> bool:
    return True


class InLoopRuns:
    """The runs in this event loop; an async context manager.

    Args:
        client: Open client.
        cancels: Where runs and their stages are watched for cancellation.
        ended: Called with each run whose end the API knows.
        context: Entered for the time of each run: what all of them share.
    """

    def __init__(
        self,
        client: PrefectClient,
        cancels: CancelWatch,
        ended: Callable[[UUID], None] = lambda _: None,
        context: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._client, self._context = client, context
        self._cancels = cancels
        self._note_ended = ended
        self._runs: dict[UUID, _Run] = {}
        self._stack = ExitStack()
        self._closed = False
        self.ended_early: tuple[UUID, ...] = ()

    async def __aenter__(self) -> Self:
        self._stack.enter_context(signals_left_alone())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        """End the runs as crashed, so that they can be started again elsewhere (`ended_early`)."""
        for run_id, run in self._runs.items():
            self._note_stop(run_id, run)
        await self._end_all()
        self._closed = True
        self._stack.close()

    @property
    def ids(self) -> tuple[UUID, ...]:
        """The runs that are here."""
        return tuple(self._runs)

    async def abandon(self) -> None:
        """End all runs without a report: other workers have them."""
        for run in self._runs.values():
            run.switch.abandoned = True
        await self._end_all()

    async def run(
        self,
        flow: Flow[..., Any],
        flow_run: FlowRun,
        dispatcher: StageDispatcher,
        still_held: Callable[[], Awaitable[bool]] = _is_held,
    ) -> int:
        """Run `flow` to its end; the engine reports it to the API.

        Args:
            flow: The flow.
            flow_run: The run, Pending.
            dispatcher: Where it dispatches stages to.
            still_held: See `RunSwitch`.

        Returns:
            0, or 1 when the engine failed without a report.
        """
        switch = RunSwitch(still_held=still_held)
        task = asyncio.create_task(self._go(flow, flow_run, dispatcher, switch), name=f"run {flow_run.name}")
        run = self._runs[flow_run.id] = _Run(task, switch)
        self._cancels.add(flow_run.id, lambda: self.cancel(flow_run.id))
        try:
            await asyncio.wait({task})
            return await self._outcome(flow_run, run)
        except asyncio.CancelledError:
            if not self._closed:
                with anyio.CancelScope(shield=True):
                    await self._hand_over(flow_run, run)
            raise
        finally:
            if self._runs.get(flow_run.id) is run:  # else it was abandoned, and this worker has it again
                self._cancels.remove(flow_run.id)
                del self._runs[flow_run.id]
            run.left.set()

    async def _go(
        self, flow: Flow[..., Any], flow_run: FlowRun, dispatcher: StageDispatcher, switch: RunSwitch
    ) -> bool:
        switch.reader = reader = WorkflowRunReader(partial(self._client.read_flow_run, flow_run.id))

        async def current() -> bool:
            return switch.is_of(await reader.read_recent())

        context = RunContext(lambda: switch.requested, current, self._cancels, reader)
        with self._context(), use_dispatcher(dispatcher), use_run_context(context):
            return await run_scheduled(flow, flow_run, switch)

    def cancel(self, flow_run_id: UUID) -> None:
        """Cancel a run of this loop once: the engine itself sets Cancelling again, and that must not interrupt it."""
        run = self._runs.get(flow_run_id)
        if run is None or run.switch.requested or run.switch.ended:
            return
        run.switch.requested = True
        run.end()

    def _note_stop(self, run_id: UUID, run: _Run) -> None:
        """Note that a run ends because its worker does."""
        switch = run.switch
        if not (run.task.done() or switch.requested or switch.abandoned or switch.stopped):
            switch.stopped = True
            self.ended_early = (*self.ended_early, run_id)

    async def _hand_over(self, flow_run: FlowRun, run: _Run) -> None:
        """End a run whose caller is cancelled: Prefect cancels all runs when one raises an unhandled error."""
        self._note_stop(flow_run.id, run)
        run.end()
        await asyncio.wait({run.task}, timeout=_SETTLE_SECONDS)
        try:
            if run.task.done():
                await self._outcome(flow_run, run)
        except (httpx.HTTPError, PrefectException) as error:
            logger.warning("run %s has no end in the API: %s", flow_run.name, reason(error))

    async def _outcome(self, flow_run: FlowRun, run: _Run) -> int:
        task, switch = run.task, run.switch
        if switch.abandoned:
            return 0
        reported = not task.cancelled() and task.exception() is None and task.result()
        if reported or await self._settled(flow_run, switch):
            self._note_ended(flow_run.id)
            return 0
        return _unreported(task, flow_run)

    async def _settled(self, flow_run: FlowRun, switch: RunSwitch) -> bool:
        """Return whether the run has an end in the API; give it one if it was interrupted too early for the engine.

        Between Pending and Running the engine neither starts such a run nor ends it: it would stay Cancelling
        indefinitely, or look as if its worker were lost. A run that is still Pending is put back when the worker stops.
        """
        state = (await self._client.read_flow_run(flow_run.id)).state
        if switch.stopped and state is not None and not (state.is_final() or state.is_cancelling()):
            if not state.is_pending():
                stopped = with_reason(Crashed(message=STOPPED), StateReason(StateCode.WORKER_STOPPED))
                await self._client.set_flow_run_state(flow_run.id, stopped, force=True)
            return True
        if state is not None and state.is_cancelling():
            ended: State[Any] = Cancelled(message="cancelled before it began")
            await self._client.set_flow_run_state(flow_run.id, ended, force=True)
            return True
        return state is not None and state.is_final()

    async def _end_all(self) -> None:
        runs = list(self._runs.values())
        for run in runs:
            run.end()
        with anyio.move_on_after(_SETTLE_SECONDS):
            for run in runs:
                await run.left.wait()


def _unreported(task: asyncio.Task[bool], flow_run: FlowRun) -> int:
    """Return 1 for an end that was not reported to the API; a stop by the server is none."""
    if task.cancelled():
        return 1
    error = task.exception()
    if error is None or isinstance(error, (Abort, Pause)):
        logger.info("run %s: the server stopped it: %s", flow_run.name, error or "not in a state to run")
        return 0
    logger.error("run %s ended outside its flow", flow_run.name, exc_info=error)
    return 1
