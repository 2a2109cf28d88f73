"""What a run, its stages and the process that owns it know of each other: whether it may report, and why it ends."""

from __future__ import annotations

import time
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from uuid import UUID

    from prefect.client.schemas.objects import FlowRun

    from mloc_prefect.prefect_ext.cancel_watch import CancelWatch


_FRESH_SECONDS = 0.5


async def _always() -> bool:
    return True


class WorkflowRunReader:
    """Reads one run, and remembers for half a second what the server said.

    At the end of a workflow run its stages and its result ask the same within milliseconds. Before a report that would
    overwrite the end that a person has set, `read_now` is asked.

    Args:
        read: Reads the run.
        fresh: Seconds.
        clocks: Seconds: one that a pause of the process does not stop, and one that a sleep of the machine does not.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[FlowRun]],
        *,
        fresh: float = _FRESH_SECONDS,
        clocks: tuple[Callable[[], float], Callable[[], float]] = (time.monotonic, time.time),
    ) -> None:
        self._read, self._fresh, self._clocks = read, fresh, clocks
        self._known: tuple[FlowRun, float, float] | None = None

    async def read_now(self) -> FlowRun:
        """Return the run as the server has it now."""
        steady, wall = (clock() for clock in self._clocks)
        run = await self._read()
        self._known = run, steady, wall
        return run

    async def read_recent(self) -> FlowRun:
        """Return the run as the server had it at most half a second ago."""
        if self._known is not None:
            run, *at = self._known
            if all(0 <= clock() - then < self._fresh for clock, then in zip(self._clocks, at, strict=True)):
                return run
        return await self.read_now()


@dataclass(slots=True)
class RunSwitch:
    """State that a run in a worker's loop shares with the worker, which may end it.

    Attributes:
        requested: Somebody asked for its end, so it ends as Cancelled.
        abandoned: Another worker has the run: it ends without a report.
        stopped: Its worker is stopping: it ends as Crashed, with the reason.
        ended: Its end was reported.
        run_count: Number of this start of the run; 0 before it began.
        reader: Reads the run, or None where nobody has given one.
        still_held: Returns whether the run is still this process's, after however long a pause.
    """

    requested: bool = False
    abandoned: bool = False
    stopped: bool = False
    ended: bool = False
    run_count: int = 0
    reader: WorkflowRunReader | None = None
    still_held: Callable[[], Awaitable[bool]] = _always

    @property
    def ending(self) -> bool:
        """Whether the run ends before its time, so that nothing is worth a long wait."""
        return self.requested or self.abandoned or self.stopped

    def is_of(self, flow_run: FlowRun) -> bool:
        """Return whether this start of the run is the current one, by what the API says of the run."""
        state = flow_run.state
        given_up = state is not None and (state.is_crashed() or state.is_scheduled() or state.is_pending())
        return not self.abandoned and not given_up and flow_run.run_count == self.run_count


@dataclass(frozen=True, slots=True)
class RunContext:
    """What the process that owns a workflow run gives to its stages and shards.

    Attributes:
        wants_cancellation: Whether a cancellation now is wanted by somebody; else the process is going away, and
            stages end as Crashed, so that a later start of the run repeats them. Ctrl-C is wanted.
        may_report: Whether the workflow run still belongs to the process. A worker that was paused for a while may have
            been declared lost: what it reports late must not change anything.
        cancel_watch: Notices cancellations in Prefect; None where nobody watches.
        reader: Reads the workflow run; None where it cannot be given to another process.
    """

    wants_cancellation: Callable[[], bool] = lambda: True
    may_report: Callable[[], Awaitable[bool]] = _always
    cancel_watch: CancelWatch | None = None
    reader: WorkflowRunReader | None = None


_current: ContextVar[RunContext] = ContextVar("mloc_run_context", default=RunContext())  # noqa: B039  # it is frozen


@contextmanager
def use_run_context(context: RunContext) -> Iterator[None]:
    """Make `context` the one of all stages and shards that start in the block."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def also_wanted(wanted: Callable[[], bool]) -> Iterator[None]:
    """Let cancellations of this context count as wanted when `wanted` or the outer context says so."""
    outer = _current.get()
    with use_run_context(replace(outer, wants_cancellation=lambda: wanted() or outer.wants_cancellation())):
        yield


@contextmanager
def watched_for_cancel(flow_run_id: UUID, cancel: Callable[[], None]) -> Iterator[None]:
    """Watch a run for the length of the block, if the context has a watch; `cancel` is called when it is cancelled."""
    watch = _current.get().cancel_watch
    if watch is None:
        yield
        return
    watch.add(flow_run_id, cancel)
    try:
        yield
    finally:
        watch.remove(flow_run_id)


def end_is_wanted() -> bool:
    """Return whether a cancellation now is wanted, see `RunContext`."""
    return _current.get().wants_cancellation()


async def may_report() -> bool:
    """Return whether the workflow run still belongs to this process, see `RunContext`."""
    return await _current.get().may_report()


def current_reader() -> WorkflowRunReader | None:
    """Return what reads the workflow run, see `RunContext`."""
    return _current.get().reader
