"""Prefect's async flow engine with what our runs need; what it relies on is named in `INHERITED` and tested.

Beside the stock engine: name, tags and labels are set when the run is created (the stock engine renames it afterwards
and knows no labels); edges of the UI graph are given as run ids, so that a failed stage has them too; the tracking task
of a stage has a key of its own, so that a second start of the parent finds each stage again whatever the order; a
cancelled asyncio task ends as Cancelled instead of Crashed; stages send no heartbeats of their own (a thread each), and
wait for a server that is away: what they have done is not lost by its outage.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from prefect.client.schemas.actions import FlowRunCreate
from prefect.client.schemas.objects import FlowRun, FlowRunPolicy, FlowRunResult
from prefect.context import FlowRunContext, TagsContext
from prefect.exceptions import Abort
from prefect.flow_engine import AsyncFlowRunEngine
from prefect.states import Pending, to_state_create
from prefect.tasks import Task

from mloc_prefect.orchestrate.outage import until_answered

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
    from uuid import UUID

    from prefect import Flow, State
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import TaskRun

T = TypeVar("T")

INHERITED = (
    "create_flow_run",
    "load_subflow_run",
    "handle_crash",
    "handle_cancellation",
    "heartbeat_seconds",
    "set_state",
    "setup_run_context",
)
"""Methods of the stock engine that are overridden or called; a test checks that they are there."""


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """How a run shows in Prefect.

    Attributes:
        name: Run name.
        tags: Tags, beside those of the context.
        labels: Labels, set at creation.
        key: Key of the stage among its siblings; None for a root.
        after: Flow runs of the upstream stages: edges of the graph.
        shown: Parameters that Prefect shows, beside those that the flow is called with.
    """

    name: str
    tags: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None
    after: tuple[UUID, ...] = ()
    shown: Mapping[str, Any] = field(default_factory=dict)


_wanted: ContextVar[Callable[[], bool]] = ContextVar("mloc_cancel_wanted", default=lambda: True)


@contextmanager
def cancellation_wanted(wanted: Callable[[], bool]) -> Iterator[None]:
    """Let stages of this context ask whether their cancellation was wanted, or else their process is going away.

    Without it every cancellation counts as wanted (Ctrl-C). A worker that shuts down says no: its stages then end as
    Crashed, so that a later start of the run goes on with them.
    """
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


@contextmanager
def also_wanted(wanted: Callable[[], bool]) -> Iterator[None]:
    """Let cancellations of this context count as wanted when `wanted` says so, or who set up the outer context."""
    outer = _wanted.get()
    with cancellation_wanted(lambda: wanted() or outer()):
        yield


def end_is_wanted() -> bool:
    """Return whether what is cancelled now is so because somebody wanted it, see `cancellation_wanted`."""
    return _wanted.get()()


async def _always() -> bool:
    return True


_may_report: ContextVar[Callable[[], Awaitable[bool]]] = ContextVar("mloc_may_report", default=_always)


@contextmanager
def reporting_while(current: Callable[[], Awaitable[bool]]) -> Iterator[None]:
    """Let stages of this context ask, before they report their end, whether their root run is still this process's.

    A worker that was stopped for a while may have been given up: what it says late must not change anything.
    """
    token = _may_report.set(current)
    try:
        yield
    finally:
        _may_report.reset(token)


async def may_report() -> bool:
    """Return whether the root run is still this process's, see `reporting_while`."""
    return await _may_report.get()()


async def run_as(flow: Flow[..., Any], parameters: dict[str, Any], identity: RunIdentity) -> tuple[State[Any], FlowRun]:
    """Run an async flow in this event loop under `identity`; return its final state and its run.

    Inside another flow run it becomes a subflow of that one.
    """
    engine = MlocEngine(flow=flow, parameters=parameters, identity=identity)
    async with engine.start():
        while engine.is_running():
            async with engine.run_context():
                call: Any = engine.call_flow_fn()  # annotated as a coroutine of a coroutine
                await call
    assert engine.flow_run is not None
    return engine.state, engine.flow_run


@dataclass
class MlocEngine(AsyncFlowRunEngine[Any, Any]):
    """See the module."""

    identity: RunIdentity | None = None
    hurried: bool = False  # it was cancelled, or its process goes away: nothing is worth a long wait

    @property
    def heartbeat_seconds(self) -> int | None:
        """Seconds between heartbeats; none for stages, whose root has one."""
        return None if self.identity and self.identity.key else super().heartbeat_seconds

    async def create_flow_run(self, client: PrefectClient) -> FlowRun:
        """Create the run, and the tracking task when it is a subflow."""
        assert self.identity is not None
        parent: FlowRunContext | None = FlowRunContext.get()
        tracking: UUID | None = None
        if parent is not None:
            task_run = await self._answered(lambda: self._track(client, parent))
            tracking = task_run.id
            started_before = parent.flow_run is not None and parent.flow_run.run_count > 1
            load = partial(self.load_subflow_run, task_run, client, parent)
            if started_before and (known := await self._answered(load)):
                return known
        self._flow_run_name_set = True
        return await self._answered(
            partial(_create, client, self.flow, self.parameters or {}, self.identity, tracking, _start_of(parent))
        )

    @asynccontextmanager
    async def setup_run_context(self, client: PrefectClient | None = None) -> AsyncIterator[None]:
        """Enter the context of the run; the first step to it, which may fail, is to read the run."""
        enter = super().setup_run_context
        async with AsyncExitStack() as stack:
            await self._answered(lambda: stack.enter_async_context(enter(client)))
            yield

    async def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        """Propose a state, unless it is an end and the root run was given to another process meanwhile."""
        if state.is_final() and not await self._answered(may_report):
            raise Abort("its run was started again elsewhere")
        propose = super().set_state
        return await self._answered(lambda: propose(state, force))

    async def handle_crash(self, exc: BaseException) -> None:
        """Take a cancelled asyncio task for what it is: Cancelled when that was wanted, else Crashed."""
        self.hurried = True
        if isinstance(exc, asyncio.CancelledError) and end_is_wanted():
            await self.handle_cancellation(exc)
        else:
            await super().handle_crash(exc)

    async def _answered(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return what `call` does; of a stage it is called until the server answers.

        A root run is another matter: when its server was never there, that has to be said at once.
        """
        if self.hurried or self.identity is None or self.identity.key is None:
            return await call()
        return await until_answered(call, f"stage {self.identity.key!r}")

    async def _track(self, client: PrefectClient, parent: FlowRunContext) -> TaskRun:
        assert self.identity is not None
        task = _tracking_task(self.flow, self.identity)
        if self.identity.key is not None:  # asked for again, it is the same one; a workflow may be called twice
            parent.task_run_dynamic_keys.pop(task.task_key, None)
        return await task.create_run(
            client=client, flow_run_context=parent, parameters=self.parameters, extra_task_inputs=self._edges()
        )

    def _edges(self) -> dict[str, set[Any]] | None:
        after = self.identity.after if self.identity else ()
        return {"upstream": {FlowRunResult(id=i) for i in after}} if after else None


def tracking_task(
    fn: Callable[..., Any], name: str, *, key: str | None = None, version: str | None = None
) -> Task[..., Any]:
    """Return the task that stands for a child run in its parent's run: it links both in the UI.

    Args:
        fn: What the child runs; it is not called.
        name: Name of the task run.
        key: Tells it from others of the same function.
        version: Version of the flow.
    """
    task: Task[..., Any] = Task(fn=fn, name=name, version=version)
    if key:
        task.task_key = key
    task._is_subflow_tracking_task = True  # type: ignore[attr-defined]  # as the stock engine marks it
    return task


async def child_task(client: PrefectClient, context: FlowRunContext, name: str) -> UUID:
    """Return the id of the task run that stands for a run which this process does not start as a flow.

    Args:
        client: Open client.
        context: Of the parent run.
        name: Names the child among those of its parent, whatever start of it.
    """

    async def attempt() -> None: ...

    task = tracking_task(attempt, name, key=f"mloc-attempt-{name}")
    context.task_run_dynamic_keys.pop(task.task_key, None)  # asked for again, it is the same one
    run = await task.create_run(client=client, flow_run_context=context, parameters={})
    return run.id


def _tracking_task(flow: Any, identity: RunIdentity) -> Task[..., Any]:
    key = f"mloc-stage-{identity.key}" if identity.key else None
    return tracking_task(flow.fn, identity.key or flow.name, key=key, version=flow.version)


_flow_ids: WeakKeyDictionary[PrefectClient, dict[str, asyncio.Task[UUID]]] = WeakKeyDictionary()


def _start_of(parent: FlowRunContext | None) -> int:
    return parent.flow_run.run_count if parent is not None and parent.flow_run is not None else 0


async def _create(
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
    response = await client.request("POST", "/flow_runs/", json=create.model_dump(mode="json", exclude_unset=True))
    run = FlowRun.model_validate(response.json())
    run.parameters = parameters
    return run


async def _flow_id(client: PrefectClient, flow: Any) -> UUID:
    """Return the id of a flow by its name, asked for once for each client, also by stages that start at once."""
    known = _flow_ids.setdefault(client, {})
    asked = known.get(flow.name)
    if asked is None or (asked.done() and (asked.cancelled() or asked.exception())):
        asked = known[flow.name] = asyncio.ensure_future(client.create_flow(flow))
    return await asyncio.shield(asked)
