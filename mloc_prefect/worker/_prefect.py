"""Every private or patched piece of Prefect that the warm worker stands on, in one place.

`tests/unit/test_prefect_contract.py` checks each of them against the installed Prefect, so that an upgrade that moves
one fails there and not at a user's.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prefect import flow_engine
from prefect._flow_run_suspension import register_flow_run_suspension_request
from prefect._internal.observers import FlowRunCancellingObserver
from prefect.flow_engine import AsyncFlowRunEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect.client.schemas.objects import FlowRun
    from prefect.flows import Flow

__all__ = ["CancelSwitch", "FlowRunCancellingObserver", "WarmEngine", "run_warm", "signals_left_alone"]


@dataclass(slots=True)
class CancelSwitch:
    """Says that the end of a run was asked for and is no crash."""

    requested: bool = False


@dataclass
class WarmEngine(AsyncFlowRunEngine[Any, Any]):
    """Prefect's async engine for a run that shares a process with others.

    Two things differ from the stock engine. A run that is cancelled ends Cancelled, not Crashed: nobody outside the
    process is there to say so. And it starts no suspension observer, a thread with a websocket on which the stock
    engine blocks the event loop for every run of a deployment.
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

    async def handle_crash(self, exc: BaseException) -> None:
        """Report the end that was asked for as a cancellation."""
        if self.switch.requested:
            await self.handle_cancellation(exc)
        else:
            await super().handle_crash(exc)


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
                await engine.call_flow_fn()  # type: ignore[unused-coroutine] # its annotation is a Coroutine too many
    return engine.flow_run is not None and engine.flow_run.state is not None and engine.flow_run.state.is_final()
