"""Prefect's async flow engine with what our runs need; `INHERITED` names what it relies on, and tests check that.

Differences from the stock engine:

* Name, tags and labels are set when a run is created; the stock engine renames it afterwards and knows no labels.
* Edges of the UI graph are given as run ids, so a failed stage has them too.
* The tracking task of a stage has a key of its own, so a second start of the parent finds each stage again.
* A cancelled asyncio task ends as Cancelled if somebody wanted that; the stock engine reports Crashed.
* Stages, and runs in a worker's loop, send no heartbeats (a thread each) and start no suspension observer (a thread
  with a websocket on which the stock engine blocks the event loop).
* They wait while the server is away: work that is done must not be lost by an outage.
* They report no end once their workflow run was given to another process.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import httpx
from prefect import flow_engine
from prefect._flow_run_suspension import register_flow_run_suspension_request
from prefect.client.schemas.actions import FlowRunCreate
from prefect.client.schemas.objects import FlowRun, FlowRunPolicy, FlowRunResult
from prefect.context import FlowRunContext, TagsContext
from prefect.exceptions import Abort, PrefectException
from prefect.flow_engine import AsyncFlowRunEngine
from prefect.states import Cancelled, Pending, to_state_create

from mloc_prefect.prefect_ext.requests import late_answer, storable
from mloc_prefect.prefect_ext.retry import until_answered
from mloc_prefect.prefect_ext.run_control import RunSwitch, end_is_wanted, may_report
from mloc_prefect.prefect_ext.run_facts import STOPPED
from mloc_prefect.prefect_ext.state_reasons import StateCode, StateReason, with_reason
from mloc_prefect.prefect_ext.tracking_tasks import create_tracking_run, tracking_task
from mloc_prefect.prefect_ext.waiting_requests import requests_wait

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
    from uuid import UUID

    from prefect import Flow, State
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import TaskRun
    from prefect.tasks import Task

T = TypeVar("T")

_log = logging.getLogger(__name__)

_UNDER_WAY_SECONDS = 15.0

INHERITED = (
    "create_flow_run",
    "load_subflow_run",
    "handle_crash",
    "handle_cancellation",
    "heartbeat_seconds",
    "set_state",
    "setup_run_context",
    "setup_flow_run_suspension_request",
    "_get_flow_run_suspension_request",
)
"""Methods of the stock engine that are overridden or called; a test checks that they are there."""


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """How a new run shows in Prefect.

    Attributes:
        name: Run name.
        tags: Tags, in addition to those of the context.
        labels: Labels, set at creation.
        key: Key of the stage among its siblings; None for a workflow run.
        after: Flow runs of the upstream stages: edges of the graph.
        shown: Parameters that Prefect shows, in addition to those that the flow is called with.
    """

    name: str
    tags: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None
    after: tuple[UUID, ...] = ()
    shown: Mapping[str, Any] = field(default_factory=dict)


async def run_as(
    flow: Flow[..., Any], parameters: dict[str, Any], identity: RunIdentity, *, wait_for: Any = None
) -> tuple[State[Any], FlowRun]:
    """Run an async flow in this event loop as a new run; return its final state and its run.

    Inside another flow run it becomes a subflow of that one, which waits for the tasks of `wait_for` and has edges from
    them.
    """
    engine = MlocEngine(flow=flow, parameters=parameters, identity=identity, wait_for=wait_for)
    await _run_to_end(engine)
    assert engine.flow_run is not None
    return engine.state, engine.flow_run


async def run_scheduled(flow: Flow[..., Any], flow_run: FlowRun, switch: RunSwitch) -> bool:
    """Run `flow` in this event loop for a run of a deployment; return whether a final state was reported to the API.

    Cancel the task that awaits this at most once, after setting `switch`: a second cancellation would interrupt the
    report of the first.
    """
    parameters = flow_engine._flow_parameters(flow, flow_run, None)
    engine = MlocEngine(flow=flow, flow_run=flow_run, parameters=parameters, switch=switch)
    await _run_to_end(engine)
    return engine.flow_run is not None and engine.flow_run.state is not None and engine.flow_run.state.is_final()


@dataclass
class MlocEngine(AsyncFlowRunEngine[Any, Any]):
    """Runs a workflow, one of its stages, or a run of a deployment in a worker's loop; see the module.

    Attributes:
        identity: How the run shows; given for a run that this engine creates.
        switch: What the run shares with its worker; given for a run of a deployment.
        hurried: The run was cancelled or its process goes away: nothing is worth a long wait.
    """

    identity: RunIdentity | None = None
    switch: RunSwitch | None = None
    hurried: bool = False
    _created: FlowRun | None = field(default=None, init=False)

    @property
    def heartbeat_seconds(self) -> int | None:
        """Seconds between heartbeats; None for none."""
        return None if self._stage or self.switch else super().heartbeat_seconds

    @contextmanager
    def setup_flow_run_suspension_request(self) -> Iterator[Any]:
        """Register the run for suspension requests of this process, without watching for those of others."""
        assert self.flow_run is not None
        request = self._get_flow_run_suspension_request()
        with register_flow_run_suspension_request(self.flow_run.id, request):
            request.raise_if_requested()
            yield request

    async def create_flow_run(self, client: PrefectClient) -> FlowRun:
        """Create the run, and the tracking task when it is a subflow."""
        assert self.identity is not None
        parent: FlowRunContext | None = FlowRunContext.get()
        tracking: UUID | None = None
        if parent is not None:
            task_run = await self._until_answered(lambda: self._track(client, parent))
            tracking = task_run.id
            started_before = parent.flow_run is not None and parent.flow_run.run_count > 1
            load = partial(self.load_subflow_run, task_run, client, parent)
            if started_before and (known := await self._until_answered(load)):
                return known
        self._flow_run_name_set = True
        create = partial(
            _create_run, client, self.flow, self.parameters or {}, self.identity, tracking, _start_of(parent)
        )
        creating = asyncio.ensure_future(self._until_answered(create))
        try:
            self._created = await asyncio.shield(creating)
        except asyncio.CancelledError:
            await asyncio.shield(asyncio.create_task(self._end_created(creating, client)))
            raise
        return self._created

    async def _end_created(self, creating: asyncio.Future[FlowRun], client: PrefectClient) -> None:
        """Cancel a run whose creation was interrupted: it may exist although its answer did not arrive.

        If its process goes away, it is left: the next start of the workflow goes on with it.
        """
        self.hurried = True
        run = await late_answer(creating, _UNDER_WAY_SECONDS)
        if run is None or not end_is_wanted():
            return
        try:
            await client.set_flow_run_state(run.id, Cancelled(message="cancelled before it began"), force=True)
        except (httpx.HTTPError, PrefectException) as error:
            _log.info("%s is left to the server's clean-up: %r", self.title, error)

    @asynccontextmanager
    async def setup_run_context(self, client: PrefectClient | None = None) -> AsyncIterator[None]:
        """Enter the context of the run; its first step, which may fail, is to read the run.

        One that this engine has just created, and whose changes it has made itself, need not be read.
        """
        enter = super().setup_run_context
        created, self._created = self._created, None
        if created is not None and self.flow_run is not None:
            started = self.flow_run.model_copy(update={"run_count": created.run_count + 1})
            client = _knowing(client or self.client, started)
        async with AsyncExitStack() as stack:
            await self._until_answered(lambda: stack.enter_async_context(enter(client)))
            if self.switch is not None and self.flow_run is not None:
                self.switch.run_count = self.flow_run.run_count
            yield

    async def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        """Propose a state, unless it is an end and the run was given to another process meanwhile."""
        switch, state = self.switch, _storable(state)
        if (switch and switch.abandoned) or (state.is_final() and not await self._until_answered(self._may_report)):
            raise Abort("the run was started again elsewhere")
        if switch and state.is_running() and not await switch.still_held():  # the server takes Running from anybody
            raise Abort("the run was given to another worker")
        propose = super().set_state
        if switch is None:
            return await self._until_answered(lambda: propose(state, force))
        if switch.stopped and state.is_crashed():  # else the stage that waits for it takes its worker for lost
            state = with_reason(state.model_copy(update={"message": STOPPED}), StateReason(StateCode.WORKER_STOPPED))
        new = await self._until_answered(lambda: _finish_request(propose(state, force)))
        switch.ended = new.is_final()
        return new

    async def handle_crash(self, exc: BaseException) -> None:
        """Report an end that somebody wanted as Cancelled, any other as Crashed."""
        self.hurried = True
        if self.switch is not None:
            wanted = self.switch.requested
        else:
            wanted = isinstance(exc, asyncio.CancelledError) and end_is_wanted()
        await (self.handle_cancellation(exc) if wanted else super().handle_crash(exc))

    @property
    def _stage(self) -> str | None:
        """Key of the stage that this engine runs, or None."""
        return self.identity.key if self.identity else None

    async def _until_answered(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return what `call` does; call it until the server answers, unless the run ends before its time.

        A workflow run outside of a worker asks once: if its server was never there, that must be said at once.
        """
        return await until_answered(call, self.title) if self.is_patient else await call()

    @property
    def is_patient(self) -> bool:
        """Whether this run waits for a server that is away."""
        if self.switch is not None:
            return not self.switch.ending
        return self._stage is not None and not self.hurried

    @property
    def title(self) -> str:
        """What waits then, for the log."""
        if self.switch is not None:
            return f"run {self.flow_run.name!r}" if self.flow_run else "a run"
        return f"stage {self._stage!r}"

    async def _may_report(self) -> bool:
        """Return whether this run still belongs to this process."""
        if self.switch is None:
            return await may_report()
        assert self.flow_run is not None
        reader = self.switch.reader
        # As it is now: an end that a person has set half a second ago must not be overwritten.
        now = await (reader.read_now() if reader else self.client.read_flow_run(self.flow_run.id))
        ended = now.state is not None and now.state.is_final()  # set by a person: that stays
        return not ended and (self.switch.is_of(now) or not self.switch.run_count)

    async def _track(self, client: PrefectClient, parent: FlowRunContext) -> TaskRun:
        assert self.identity is not None
        task, after = _tracking_task(self.flow, self.identity), self.identity.after
        edges: dict[str, set[Any]] | None = {"upstream": {FlowRunResult(id=i) for i in after}} if after else None
        return await create_tracking_run(
            task,
            client,
            parent,
            keyed=self._stage is not None,  # a workflow may be called twice
            parameters=self.parameters,
            extra_task_inputs=edges,
            wait_for=self.wait_for,
        )


async def _run_to_end(engine: MlocEngine) -> None:
    with requests_wait(engine.title, lambda: engine.is_patient):
        async with engine.start():
            while engine.is_running():
                async with engine.run_context():
                    call: Any = engine.call_flow_fn()  # annotated as a coroutine of a coroutine
                    await call


def _storable(state: State[Any]) -> State[Any]:
    """Return a state whose message can be stored: it may repeat what a user or a model wrote."""
    return state.model_copy(update={"message": storable(state.message)})


async def _finish_request(request: Coroutine[Any, Any, T]) -> T:
    """Wait for the answer to a request that is under way, also when cancelled, and be cancelled then.

    The server may carry out a request whose sender has gone: a run that is taken for Pending, and given back, would
    become Running a moment later without an owner.
    """
    task = asyncio.ensure_future(request)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await late_answer(task, _UNDER_WAY_SECONDS)
        raise


def _knowing(client: PrefectClient, flow_run: FlowRun) -> PrefectClient:
    """Return a client that answers the next question for a run itself."""
    knowing = copy(client)

    async def read_flow_run(_: UUID) -> FlowRun:
        del vars(knowing)["read_flow_run"]
        return flow_run

    vars(knowing)["read_flow_run"] = read_flow_run
    return knowing


def _tracking_task(flow: Any, identity: RunIdentity) -> Task[..., Any]:
    key = f"mloc-stage-{identity.key}" if identity.key else None
    return tracking_task(flow.fn, identity.key or flow.name, key=key, version=flow.version)


def _start_of(parent: FlowRunContext | None) -> int:
    return parent.flow_run.run_count if parent is not None and parent.flow_run is not None else 0


async def _create_run(
    client: PrefectClient,
    flow: Any,
    parameters: dict[str, Any],
    identity: RunIdentity,
    tracking: UUID | None,
    start: int,
) -> FlowRun:
    create = FlowRunCreate(
        flow_id=await _flow_id(client, flow),
        flow_version=flow.version,
        name=identity.name,
        parameters={**identity.shown, **flow.serialize_parameters(parameters)},
        tags=sorted({*TagsContext.get().current_tags, *identity.tags}),
        labels=dict(identity.labels),
        parent_task_run_id=tracking,
        # Sent again when the answer was lost, it makes no second run.
        idempotency_key=f"{tracking}/{start}" if tracking else None,
        state=to_state_create(Pending()),
        empirical_policy=FlowRunPolicy(retries=0, retry_delay=0),
    )
    body = storable(create.model_dump(mode="json", exclude_unset=True))
    response = await client.request("POST", "/flow_runs/", json=body)
    run = FlowRun.model_validate(response.json())
    run.parameters = parameters
    return run


@dataclass
class _FlowIds:
    """Ids of flows, by name, as one client has read them. It holds no task: the context of one holds the client."""

    known: dict[str, UUID] = field(default_factory=dict)
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)


_flow_ids: WeakKeyDictionary[PrefectClient, _FlowIds] = WeakKeyDictionary()


async def _flow_id(client: PrefectClient, flow: Any) -> UUID:
    """Return the id of a flow by its name; each client asks once for it, also for stages that start together."""
    ids = _flow_ids.setdefault(client, _FlowIds())
    async with ids.reading:
        if flow.name not in ids.known:
            ids.known[flow.name] = await client.create_flow(flow)
        return ids.known[flow.name]
