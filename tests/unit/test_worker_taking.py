"""Taking runs: whatever the server answers to it ends neither the worker nor what it runs."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, uuid4

import anyio
import httpx
import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import Abort, ObjectNotFound, Pause
from prefect.states import Cancelling, Pending
from prefect.workers.base import BaseWorker

from mloc_prefect.settings import get_settings
from mloc_prefect.worker.taken import Taken
from mloc_prefect.worker.worker import MlocGpuWorker

if TYPE_CHECKING:
    from pathlib import Path

    from prefect.client.schemas.objects import State

DOWN = httpx.ConnectError("down")


class Node:
    """What is asked of the rest of the worker."""

    incarnation = "1"

    def __init__(self) -> None:
        self.dropped: list[UUID] = []
        self.doubted: list[UUID] = []

    async def drop(self, flow_run_id: UUID) -> None:
        self.dropped.append(flow_run_id)

    def doubt(self, flow_run_id: UUID) -> None:
        self.doubted.append(flow_run_id)


class Server:
    """Answers with errors, and hears what is asked meanwhile."""

    def __init__(self, *, deployment: BaseException | None = None, state: BaseException | None = None) -> None:
        self.deployment, self.state = deployment, state

    async def read_deployment(self, _: UUID) -> None:
        if self.deployment is not None:
            raise self.deployment

    async def set_flow_run_state(self, *_: Any, **__: Any) -> None:
        assert self.state is not None
        raise self.state


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlocGpuWorker:
    logger = logging.getLogger("tests.taking")  # that of a run sends to a server
    monkeypatch.setattr(BaseWorker, "get_flow_run_logger", lambda *_: logger)
    found = MlocGpuWorker(work_pool_name="gpu", limit=1, settings=get_settings(home=tmp_path))
    found._node = Node()  # type: ignore[assignment]
    found._limiter = anyio.CapacityLimiter(1)
    return found


async def take(worker: MlocGpuWorker, server: Server) -> UUID:
    """Let a worker take a run, in a group as Prefect has it: an error that leaves it ends all runs in it."""
    worker._client = server  # type: ignore[assignment]
    run = FlowRun(flow_id=uuid4(), deployment_id=uuid4(), name="r")
    async with anyio.create_task_group() as group:
        worker._runs_task_group = group
        worker._limiter.acquire_on_behalf_of_nowait(run.id)  # type: ignore[union-attr]
        worker._submitting_flow_run_ids.add(run.id)
        group.start_soon(worker._submit_run, run)
    return run.id


@pytest.mark.parametrize(
    ("server", "doubted"),
    [
        (Server(deployment=DOWN), True),
        (Server(deployment=KeyError("nobody thought of this")), True),
        (Server(state=DOWN), True),
        (Server(state=Abort("another worker was faster")), False),
        (Server(state=Pause("somebody has paused it")), False),
        (Server(state=ObjectNotFound(DOWN)), False),
    ],
)
async def test_a_run_that_cannot_be_taken_leaves_nothing_behind(
    worker: MlocGpuWorker, server: Server, *, doubted: bool
):
    """And it may be taken again: as long as it counts as being submitted it is passed over."""
    run = await take(worker, server)
    assert worker._submitting_flow_run_ids == set()
    assert worker._limiter.borrowed_tokens == 0  # type: ignore[union-attr]
    assert worker._node.dropped == [run]  # type: ignore[union-attr]
    assert worker._node.doubted == [run] * doubted  # type: ignore[union-attr]


async def test_a_run_whose_deployment_is_gone_gives_its_slot_back(worker: MlocGpuWorker):
    await take(worker, Server(deployment=ObjectNotFound(DOWN), state=ObjectNotFound(DOWN)))
    assert worker._limiter.borrowed_tokens == 0  # type: ignore[union-attr]


async def test_a_run_that_has_begun_keeps_what_it_has(worker: MlocGpuWorker, monkeypatch: pytest.MonkeyPatch):
    async def begun(self: MlocGpuWorker, flow_run: FlowRun) -> None:
        self._entered.add(flow_run.id)
        raise KeyError("nobody thought of this")

    monkeypatch.setattr(BaseWorker, "_submit_run", begun)
    await take(worker, Server())
    assert worker._limiter.borrowed_tokens == 1  # type: ignore[union-attr]
    assert worker._node.dropped == []  # type: ignore[union-attr]
    assert worker._submitting_flow_run_ids == set()


async def test_a_worker_that_is_cancelled_does_not_wait_for_what_it_was_taking(worker: MlocGpuWorker):
    class Silent(Server):
        async def read_deployment(self, _: UUID) -> None:
            await asyncio.Event().wait()

    with anyio.move_on_after(0.05):
        await take(worker, Silent())
    assert worker._submitting_flow_run_ids == set()


class Run:
    """A client that knows one run."""

    def __init__(self, message: str) -> None:
        self.state: State[Any] = Pending(message=message)
        self.asked = 0

    async def read_flow_run(self, _: UUID) -> FlowRun:
        self.asked += 1
        return FlowRun(flow_id=uuid4(), state=self.state)


@pytest.mark.parametrize(
    ("sure", "holder", "ours"),
    [(True, "other (9)", True), (False, "w (1)", True), (False, "other (9)", False), (False, "w (2)", False)],
)
async def test_what_was_taken_before_a_pause_begins_only_when_nobody_else_has_it(
    *, sure: bool, holder: str, ours: bool
):
    client, run = Run(f"taken by {holder}"), uuid4()
    taken = Taken("w", cast("Any", client), lambda incarnation: sure and incarnation == "1")
    taken.add(run, "1")
    assert await taken.holds(run) is ours
    assert client.asked == (not sure)  # no request where nobody can have missed us


async def test_a_run_that_is_cancelled_meanwhile_is_begun_to_be_ended():
    client, run = Run(""), uuid4()
    client.state = Cancelling()
    taken = Taken("w", cast("Any", client), lambda _: False)
    taken.add(run, "1")
    assert await taken.holds(run)
    taken.forget(run)
    client.state = Pending(message="taken by w (1)")
    assert not await taken.holds(run)


async def test_a_run_that_was_given_away_is_not_begun(worker: MlocGpuWorker, monkeypatch: pytest.MonkeyPatch):
    async def held(_run: UUID) -> bool:
        return False

    monkeypatch.setattr(worker, "_own_flow", lambda _: object())
    monkeypatch.setattr(worker._node, "taken", SimpleNamespace(holds=held), raising=False)
    started: list[object] = []
    status = cast("Any", SimpleNamespace(started=started.append))
    result = await worker._run(FlowRun(flow_id=uuid4(), name="r"), cast("Any", None), status)  # has no `run` to call
    assert result.status_code == 0  # Prefect would mark the run, which is another's, as crashed otherwise
    assert isinstance(started[0], Exception)  # an identifier would be written to the run
