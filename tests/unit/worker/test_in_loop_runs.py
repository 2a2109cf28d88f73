"""How runs in the worker's loop end when the worker does, on purpose or not."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import anyio
import httpx
import pytest
from prefect.states import Crashed, Pending, Running, State

from mloc_prefect.prefect_ext.cancel_watch import CancelWatch
from mloc_prefect.prefect_ext.run_facts import STOPPED
from mloc_prefect.worker import in_loop_runs
from mloc_prefect.worker.in_loop_runs import InLoopRuns

if TYPE_CHECKING:
    from mloc_prefect.prefect_ext.run_control import RunSwitch


class Site:
    """Warm runs on a server that knows one run, and an engine that needs a moment to report its end."""

    def __init__(self) -> None:
        self.run_id = uuid4()
        self.state: State[Any] = Pending()
        self.began = asyncio.Event()
        self.interruptions = 0
        self.down = False
        self.reports = True
        self.runs = InLoopRuns(self, CancelWatch(self))  # type: ignore[arg-type]

    async def read_flow_run(self, _: UUID) -> SimpleNamespace:
        if self.down:
            raise httpx.ConnectError("down")
        await asyncio.sleep(0.01)
        return SimpleNamespace(state=self.state, run_count=1)

    async def set_flow_run_state(self, _: UUID, state: State[Any], *, force: bool) -> None:
        assert force
        self.state = state

    async def run_scheduled(self, _flow: Any, _run: Any, switch: RunSwitch) -> bool:
        """Be at work until cancelled."""
        self.state = Running()
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.interruptions += 1
            await self.report(switch)
        return True

    async def report(self, switch: RunSwitch) -> None:
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            self.interruptions += 1
            raise
        if self.reports:
            self.state = Crashed(message=STOPPED if switch.stopped else "")
            switch.ended = True

    async def start(self) -> None:
        """Be the run of a worker."""
        run: Any = SimpleNamespace(id=self.run_id, name="r")
        await self.runs.run(None, run, None)  # type: ignore[arg-type]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    found = Site()
    monkeypatch.setattr(in_loop_runs, "run_scheduled", found.run_scheduled)
    return found


async def end_with_an_error(site: Site) -> None:
    """Let an error that nobody takes end the group in which Prefect has all runs of a worker."""

    async def broken() -> None:
        await site.began.wait()
        raise KeyError("nobody thought of this")

    with pytest.raises(ExceptionGroup):
        async with anyio.create_task_group() as group:
            group.start_soon(site.start)
            group.start_soon(broken)


@pytest.mark.parametrize("reports", [True, False])
async def test_a_run_that_ends_with_its_worker_by_an_error_is_handed_over(site: Site, *, reports: bool):
    """As when the worker is stopped, also where its engine had no time to report."""
    site.reports = reports
    async with site.runs:
        await end_with_an_error(site)
    assert site.runs.ended_early == (site.run_id,)
    assert site.state.is_crashed()
    assert site.state.message == STOPPED
    assert site.interruptions == 1
    assert site.runs.ids == ()


async def test_a_server_that_is_away_then_is_waited_for_by_nobody(site: Site, caplog: pytest.LogCaptureFixture):
    site.down, site.reports = True, False
    async with site.runs:
        await end_with_an_error(site)
    assert site.runs.ended_early == (site.run_id,)
    assert "has no end in the API: down" in caplog.text


async def test_a_run_that_was_being_cancelled_is_not_handed_over(site: Site):
    async with site.runs:
        task = asyncio.create_task(site.start())
        await site.began.wait()
        site.runs.cancel(site.run_id)
        await asyncio.sleep(0)
    assert site.runs.ended_early == ()
    assert site.interruptions == 1  # stopping does not interrupt the report
    await task


async def test_a_worker_that_is_stopped_waits_until_its_runs_have_an_end(site: Site):
    site.reports = False  # `InLoopRuns` gives it one
    async with site.runs:
        task = asyncio.create_task(site.start())
        await site.began.wait()
    assert site.state.is_crashed()
    assert site.runs.ended_early == (site.run_id,)
    assert site.interruptions == 1
    await task
