"""Single stages that somebody cancels in Prefect: who looks for them, and how their runner hears of it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from uuid import UUID

_log = logging.getLogger(__name__)

POLL_SECONDS = 2.0


class CancelBoard(Protocol):
    """Watches flow runs of this process."""

    def add(self, flow_run_id: UUID, cancel: Callable[[], None]) -> None:
        """Call `cancel` once as soon as somebody has set the run to Cancelling or Cancelled."""

    def remove(self, flow_run_id: UUID) -> None:
        """Watch it no longer; nothing happens when it is not watched."""


class PollingBoard:
    """Asks the API for all watched runs at once, every `POLL_SECONDS`; see `polling_board`."""

    def __init__(self) -> None:
        self._watched: dict[UUID, Callable[[], None]] = {}

    def add(self, flow_run_id: UUID, cancel: Callable[[], None]) -> None:
        """See `CancelBoard`."""
        self._watched[flow_run_id] = cancel

    def remove(self, flow_run_id: UUID) -> None:
        """See `CancelBoard`."""
        self._watched.pop(flow_run_id, None)

    async def poll(self) -> None:
        """Look once."""
        if not self._watched:
            return
        ended = FlowRunFilterStateType(any_=[StateType.CANCELLING, StateType.CANCELLED])
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=list(self._watched)), state=FlowRunFilterState(type=ended))
        async with get_client() as client:
            found = await client.read_flow_runs(flow_run_filter=wanted)
        for run in found:
            cancel = self._watched.pop(run.id, None)
            if cancel is not None:
                cancel()


@asynccontextmanager
async def polling_board() -> AsyncIterator[PollingBoard]:
    """Yield a board that polls the API in force until the block ends."""
    board = PollingBoard()

    async def poll() -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await board.poll()
            except httpx.HTTPError as error:
                _log.info("no look at cancelled runs this time: %s", error)

    task = asyncio.create_task(poll())
    try:
        yield board
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


_in_force: ContextVar[CancelBoard | None] = ContextVar("mloc_cancel_board", default=None)


@contextmanager
def use_cancel_board(board: CancelBoard) -> Iterator[None]:
    """Make `board` the one on which stages of this context put themselves."""
    token = _in_force.set(board)
    try:
        yield
    finally:
        _in_force.reset(token)


@contextmanager
def on_board(flow_run_id: UUID, cancel: Callable[[], None]) -> Iterator[None]:
    """Have `flow_run_id` watched for the length of the block, if there is a board."""
    board = _in_force.get()
    if board is None:
        yield
        return
    board.add(flow_run_id, cancel)
    try:
        yield
    finally:
        board.remove(flow_run_id)
