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
from prefect.client.schemas.responses import OrchestrationResult, StateAcceptDetails
from prefect.exceptions import Abort, ObjectNotFound, Pause
from prefect.states import Cancelling, Pending
from prefect.workers.base import BaseWorker

from mloc_prefect.prefect_ext.state_reasons import StateCode, StateReason, with_reason
from mloc_prefect.settings import get_settings
from mloc_prefect.worker.claims.left_runs import LeftRuns
from mloc_prefect.worker.claims.pending import PendingClaims
from mloc_prefect.worker.worker import MlocGpuWorker

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from prefect.client.schemas.objects import State

DOWN = httpx.ConnectError("down")


class FakeServices:
    """What is asked of the rest of the worker.

    Attributes:
        flow: The flow of ours that runs are of, or None for flows of users.
        held: Whether claimed runs are still this worker's.
        end: What comes of a run in the loop.
    """

    incarnation = "1"

    def __init__(self) -> None:
        self.dropped: list[UUID] = []
        self.unknown: list[UUID] = []
        self.begun: list[UUID] = []
        self.draining = False
        self.flow: object | None = None
        self.held = True
        self.end: int | BaseException = 0
        self.left = LeftRuns(self.recover, patience=0.0)
        self.own_runs = SimpleNamespace(flow_of=self.flow_of)
        self.pending = SimpleNamespace(still_held=self.still_held)

    async def flow_of(self, client: Server, _pool: object, run: FlowRun) -> object | None:
        await client.read_deployment(run.deployment_id)  # type: ignore[arg-type]
        return self.flow

    async def still_held(self, _run: UUID) -> bool:
        return self.held

    async def run(self, _flow: object, run: FlowRun) -> int:
        self.begun.append(run.id)
        if isinstance(self.end, BaseException):
            raise self.end
        return self.end

    def freed(self) -> None: ...

    async def recover(self, _incarnation: str, runs: Collection[UUID]) -> None:
        self.recovered = runs

    def note_claimed(self, flow_run_id: UUID, incarnation: str) -> None:
        self.left.note_claimed(flow_run_id, incarnation)

    async def drop(self, flow_run_id: UUID) -> None:
        self.dropped.append(flow_run_id)

    def note_unknown_claim(self, flow_run_id: UUID) -> None:
        self.unknown.append(flow_run_id)


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

    async def update_flow_run_labels(self, *_: Any) -> None: ...


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlocGpuWorker:
    logger = logging.getLogger("tests.taking")  # that of a run sends to a server
    monkeypatch.setattr(BaseWorker, "get_flow_run_logger", lambda *_: logger)
    found = MlocGpuWorker(work_pool_name="gpu", limit=1, settings=get_settings(home=tmp_path))
    found._services = FakeServices()  # type: ignore[assignment]
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
    ("server", "unknown"),
    [
        (Server(deployment=DOWN), True),
        (Server(deployment=KeyError("nobody thought of this")), True),
        (Server(state=DOWN), True),
        (Server(state=Abort("another worker was faster")), False),
        (Server(state=Pause("somebody has paused it")), False),
        (Server(state=ObjectNotFound(DOWN)), False),
    ],
)
@pytest.mark.parametrize("own", [True, False])
async def test_a_run_that_cannot_be_taken_leaves_nothing_behind(
    worker: MlocGpuWorker, server: Server, *, unknown: bool, own: bool
):
    """And it may be taken again: as long as it counts as being submitted it is passed over."""
    worker._services.flow = object() if own else None  # type: ignore[union-attr]
    run = await take(worker, server)
    assert worker._submitting_flow_run_ids == set()
    assert worker._limiter.borrowed_tokens == 0  # type: ignore[union-attr]
    assert worker._services.dropped == [run]  # type: ignore[union-attr]
    assert worker._services.unknown == [run] * unknown  # type: ignore[union-attr]


class Claimed(Server):
    """Gives a run to the worker; then it has an error for what its start needs, if any."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.error = error
        self.proposed: list[str] = []

    async def set_flow_run_state(self, _run: UUID, state: Any, **__: Any) -> Any:
        if not state.is_pending() and self.error is not None:
            raise self.error
        self.proposed.append(state.name)
        return OrchestrationResult(state=state, status="ACCEPT", details=StateAcceptDetails())

    async def update_flow_run_labels(self, *_: Any) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("error", [DOWN, KeyError("nobody thought of this")])
@pytest.mark.parametrize("own", [True, False])
async def test_a_claimed_run_that_does_not_start_is_looked_after(
    worker: MlocGpuWorker, error: BaseException, *, own: bool
):
    """The stock worker reports it as crashed, or fails to; no other worker would ever come for it."""
    worker._services.flow = object() if own else None  # type: ignore[union-attr]
    run = await take(worker, Claimed(error))
    assert not worker._services.left.holds(run)  # type: ignore[union-attr]
    await worker._services.left.settle()  # type: ignore[union-attr]
    assert worker._services.recovered == {run}  # type: ignore[union-attr, attr-defined]
    assert worker._limiter.borrowed_tokens == 0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("end", "states"), [(0, ["Pending"]), (1, ["Pending", "Crashed"]), (KeyError("nobody"), ["Pending"])]
)
async def test_a_run_of_ours_leaves_nothing_behind(worker: MlocGpuWorker, end: int | BaseException, states: list[str]):
    """One whose engine ended without a report is reported as crashed."""
    worker._services.flow, worker._services.end = object(), end  # type: ignore[union-attr, attr-defined]
    server = Claimed()
    run = await take(worker, server)
    assert worker._services.begun == [run]  # type: ignore[union-attr, attr-defined]
    assert worker._services.dropped == [run]  # type: ignore[union-attr]
    assert server.proposed == states
    assert worker._limiter.borrowed_tokens == 0  # type: ignore[union-attr]
    assert not worker._entered


@pytest.mark.parametrize(("status", "states"), [(422, ["Pending", "Crashed"]), (503, ["Pending"]), (429, ["Pending"])])
async def test_a_refusal_at_the_start_of_a_run_ends_it_and_an_outage_does_not(
    worker: MlocGpuWorker, status: int, states: list[str]
):
    """What is refused once is refused each time: the run would be put back and claimed indefinitely."""
    response = httpx.Response(status, request=httpx.Request("POST", "http://test/api/flow_runs/x/labels"))
    server = Claimed()

    async def update_flow_run_labels(*_: Any) -> None:
        response.raise_for_status()

    server.update_flow_run_labels = update_flow_run_labels  # type: ignore[method-assign]
    worker._services.flow = object()  # type: ignore[union-attr, attr-defined]
    await take(worker, server)
    assert server.proposed == states
    assert not worker._entered


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
    assert worker._services.dropped == []  # type: ignore[union-attr]
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

    def __init__(self, message: str, claim: StateReason | None = None) -> None:
        self.state: State[Any] = Pending(message=message)
        if claim is not None:
            self.state = with_reason(self.state, claim)
        self.asked = 0

    async def read_flow_run(self, _: UUID) -> FlowRun:
        self.asked += 1
        return FlowRun(flow_id=uuid4(), state=self.state)


def pending(client: Run, *, sure: bool) -> PendingClaims:
    async def put_back(_: object) -> list[str]:
        raise AssertionError("no claim is unknown here")

    return PendingClaims(
        "w", cast("Any", client), is_sure=lambda incarnation: sure and incarnation == "1", put_back=put_back
    )


@pytest.mark.parametrize(
    ("sure", "holder", "ours"),
    [(True, "other (9)", True), (False, "w (1)", True), (False, "other (9)", False), (False, "w (2)", False)],
)
async def test_what_was_taken_before_a_pause_begins_only_when_nobody_else_has_it(
    *, sure: bool, holder: str, ours: bool
):
    client, run = Run(f"taken by {holder}"), uuid4()
    claims = pending(client, sure=sure)
    claims.note_claimed(run, "1")
    assert await claims.still_held(run) is ours
    assert client.asked == (not sure)  # no request where nobody can have missed us


@pytest.mark.parametrize(("holder", "ours"), [(("w", "1"), True), (("w", "2"), False), (("other", "9"), False)])
async def test_a_claim_is_known_by_its_code(*, holder: tuple[str, str], ours: bool):
    run = uuid4()
    claims = pending(Run("", StateReason(StateCode.CLAIMED, *holder)), sure=False)
    claims.note_claimed(run, "1")
    assert await claims.still_held(run) is ours


async def test_a_run_that_is_cancelled_meanwhile_is_begun_to_be_ended():
    client, run = Run(""), uuid4()
    client.state = Cancelling()
    claims = pending(client, sure=False)
    claims.note_claimed(run, "1")
    assert await claims.still_held(run)
    claims.forget_claimed(run)
    client.state = Pending(message="taken by w (1)")
    assert not await claims.still_held(run)


async def test_a_run_that_was_given_away_is_not_begun(worker: MlocGpuWorker):
    worker._services.flow, worker._services.held = object(), False  # type: ignore[union-attr, attr-defined]
    server = Claimed()
    await take(worker, server)
    assert worker._services.begun == []  # type: ignore[union-attr, attr-defined]
    assert server.proposed == ["Pending"]  # Prefect would mark the run, which is another's, as crashed otherwise
