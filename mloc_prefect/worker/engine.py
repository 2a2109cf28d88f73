"""Runs of our own flows in the worker's event loop: no process start, no import, hosts stay warm."""

from __future__ import annotations

import asyncio
import importlib
import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

from prefect.exceptions import Abort, Pause
from prefect.flows import Flow
from prefect.states import Cancelled, Crashed

from mloc_prefect.orchestrate.cancelling import use_cancel_board
from mloc_prefect.orchestrate.dispatch import use_dispatcher
from mloc_prefect.orchestrate.engine import cancellation_wanted, reporting_while
from mloc_prefect.orchestrate.lost import STOPPED
from mloc_prefect.worker._prefect import CancelSwitch, run_warm, signals_left_alone

if TYPE_CHECKING:
    from types import TracebackType
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, State
    from prefect.client.schemas.responses import DeploymentResponse

    from mloc_prefect.orchestrate.dispatch import StageDispatcher
    from mloc_prefect.worker.cancels import CancelWatch

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


class WarmRuns:
    """The runs in this loop; an async context manager.

    Args:
        client: Open client.
        cancels: Where runs and their stages are watched for cancellation.
    """

    def __init__(self, client: PrefectClient, cancels: CancelWatch) -> None:
        self._client = client
        self._cancels = cancels
        self._runs: dict[UUID, tuple[asyncio.Task[bool], CancelSwitch]] = {}
        self._stack = ExitStack()
        self.ended_early: tuple[UUID, ...] = ()

    async def __aenter__(self) -> Self:
        self._stack.enter_context(signals_left_alone())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        """End what still runs, as crashed, so that it may be started again elsewhere (`ended_early`)."""
        early = {run_id: switch for run_id, (_, switch) in self._runs.items() if not switch.requested}
        for switch in early.values():
            switch.stopped = True
        self.ended_early = tuple(early)
        await self._end_all()
        self._stack.close()

    @property
    def ids(self) -> tuple[UUID, ...]:
        """The runs that are here."""
        return tuple(self._runs)

    async def abandon(self) -> None:
        """End all runs without a word: they were given to other workers."""
        for _, switch in self._runs.values():
            switch.abandoned = True
        await self._end_all()

    async def run(self, flow: Flow[..., Any], flow_run: FlowRun, dispatcher: StageDispatcher) -> int:
        """Run `flow` to its end, whatever that is; the engine reports it to the API.

        Args:
            flow: The flow.
            flow_run: The run, Pending.
            dispatcher: Where it dispatches stages to.

        Returns:
            0, or 1 when the engine broke down without a report.
        """
        switch = CancelSwitch()
        task = asyncio.create_task(self._go(flow, flow_run, dispatcher, switch), name=f"run {flow_run.name}")
        self._runs[flow_run.id] = (task, switch)
        self._cancels.add(flow_run.id, lambda: self.cancel(flow_run.id))
        try:
            await asyncio.wait({task})
        finally:
            self._cancels.remove(flow_run.id)
            del self._runs[flow_run.id]
        if switch.abandoned or (not task.cancelled() and task.exception() is None and task.result()):
            return 0
        if await self._settled(flow_run, switch):
            return 0
        return _unreported(task, flow_run)

    async def _go(
        self, flow: Flow[..., Any], flow_run: FlowRun, dispatcher: StageDispatcher, switch: CancelSwitch
    ) -> bool:
        async def current() -> bool:
            return switch.is_of(await self._client.read_flow_run(flow_run.id))

        with (
            use_dispatcher(dispatcher),
            use_cancel_board(self._cancels),
            cancellation_wanted(lambda: switch.requested),
            reporting_while(current),
        ):
            return await run_warm(flow, flow_run, switch)

    def cancel(self, flow_run_id: UUID) -> None:
        """Cancel a run of this loop, once: the engine itself says Cancelling again, and that must not interrupt it."""
        task, switch = self._runs.get(flow_run_id, (None, None))
        if task is None or switch is None or switch.requested or switch.ended:
            return
        switch.requested = True
        task.cancel()

    async def _settled(self, flow_run: FlowRun, switch: CancelSwitch) -> bool:
        """Return whether the run has an end in the API; give it one if it was interrupted too early for the engine.

        Between Pending and Running the engine neither starts such a run nor ends it: it would stay Cancelling for ever,
        or be taken for one whose worker was lost. One that is still Pending is put back by whoever stops the worker.
        """
        state = (await self._client.read_flow_run(flow_run.id)).state
        if switch.stopped and state is not None and not (state.is_final() or state.is_cancelling()):
            if not state.is_pending():
                await self._client.set_flow_run_state(flow_run.id, Crashed(message=STOPPED), force=True)
            return True
        if state is not None and state.is_cancelling():
            ended: State[Any] = Cancelled(message="cancelled before it began")
            await self._client.set_flow_run_state(flow_run.id, ended, force=True)
            return True
        return state is not None and state.is_final()

    async def _end_all(self) -> None:
        tasks = [task for task, switch in self._runs.values() if not switch.ended]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_SETTLE_SECONDS)


def _unreported(task: asyncio.Task[bool], flow_run: FlowRun) -> int:
    """Return 1 for an end that nobody has reported to the API; a stop by the server is none."""
    if task.cancelled():
        return 1
    error = task.exception()
    if error is None or isinstance(error, (Abort, Pause)):
        logger.info("run %s: the server stopped it: %s", flow_run.name, error or "not in a state to run")
        return 0
    logger.error("run %s ended outside its flow", flow_run.name, exc_info=error)
    return 1
