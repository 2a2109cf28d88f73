"""Where a stage's attempt is executed: the `StageDispatcher` protocol and the dispatchers of one machine."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mloc_prefect.artifacts import atomic
from mloc_prefect.errors import ExecutionError
from mloc_prefect.execution.environments import interpreter_of
from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionFailure, ExecutionResult, UserError
from mloc_prefect.orchestrate.choice import choose
from mloc_prefect.worker.inventory import matching_gpus, misfit, read_inventory, wanted_gpus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from mloc_prefect.execution.hosts import HostProvider
    from mloc_prefect.execution.hosttypes import HostSpec
    from mloc_prefect.execution.protocol import ExecutionRequest
    from mloc_prefect.plan.model import ResourceRequest
    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.tasks.base import ExecutorRef
    from mloc_prefect.worker.inventory import Inventory
    from mloc_prefect.worker.leases import Lease, LeaseBook


@dataclass(frozen=True, slots=True, kw_only=True)
class StageJob:
    """One attempt, with what is needed to find a place for it.

    Attributes:
        request: What crosses to the executor.
        executor: The code that runs it.
        engine_options: What makes a warm host reusable.
        resources: What it asks of a machine.
        timeout: Seconds it may run (`spec.timeoutSec`), or None.
        stall: Seconds without any sign of life after which it is ended.
        holder: Name for people who look at leases.
        priority: `spec.priority`; larger is served first.
        avoid: Workers on which it failed before; another one is better.
        document: The effective document without its `spec`; for workers that are sent whole documents.
        results: Results of the tasks it depends on by stage name, each with a `result` level; None when it depends on
            none. Also only for such workers: our executors get `request.upstream`.
    """

    request: ExecutionRequest
    executor: ExecutorRef
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    resources: ResourceRequest
    timeout: float | None = None
    stall: float = 1800.0
    holder: str = ""
    priority: int = 0
    avoid: tuple[str, ...] = ()
    document: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] | None = None

    @property
    def leased(self) -> bool:
        """Whether a device is leased for it; light work that asks for no GPU only needs to be somewhere."""
        return self.executor.engine or wanted_gpus(self.resources) > 0

    @property
    def title(self) -> str:
        """Name for people who look at leases."""
        return self.holder or self.request.name


class StageDispatcher(Protocol):
    """Runs one attempt somewhere."""

    async def dispatch(self, job: StageJob, *, on_event: Callable[[ExecutionEvent], None]) -> ExecutionResult:
        """Run the attempt and return its result; cancelling the call cancels the attempt.

        Raises:
            ExecutionError: It failed; `.retryable` says whether another attempt may go better.
            DispatchError: No place could be had.
        """


class InProcessDispatcher:
    """Runs attempts on executor hosts of this machine, each engine under a lease.

    Args:
        settings: For the interpreters of executors.
        hosts: Who owns the executor processes.
        leases: Who hands out devices.
        inventory: What the machine has; requests beyond it (`--ignore-resources`) are cut down to it.
    """

    def __init__(self, *, settings: MlocSettings, hosts: HostProvider, leases: LeaseBook, inventory: Inventory) -> None:
        self._settings = settings
        self._hosts = hosts
        self._leases = leases
        self._inventory = inventory

    async def dispatch(self, job: StageJob, *, on_event: Callable[[ExecutionEvent], None]) -> ExecutionResult:
        """See `StageDispatcher`; waits for a lease as long as it takes."""
        job = self._chosen(job, on_event)
        if not self._clamped(job).leased:
            return await self._execute(job, self._host_spec(job), on_event)
        lease = await self._acquire(job, on_event)
        return await self._under(lease, job, on_event)

    async def try_lease(self, job: StageJob) -> Lease | None:
        """Return a lease under which `dispatch_leased` can run `job` now, or None; never waits.

        Raises:
            DispatchError: This machine can never run it.
        """
        job = self._chosen(job, lambda _: None)
        share, engine = self._engine_of(job)
        return await self._leases.try_acquire(
            job.resources, holder=job.title, share=share, engine=engine, priority=job.priority
        )

    async def wait_lease(self, job: StageJob, *, waited: float = 0.0) -> Lease:
        """Wait for a lease under which `dispatch_leased` can run `job`; cancelling the call leaves the line.

        Args:
            job: The attempt.
            waited: Seconds that it has waited elsewhere already.

        Raises:
            DispatchError: This machine can never run it.
        """
        job = self._chosen(job, lambda _: None)
        share, engine = self._engine_of(job)
        return await self._leases.acquire(
            job.resources, holder=job.title, share=share, engine=engine, priority=job.priority, waited=waited
        )

    async def dispatch_leased(
        self, job: StageJob, lease: Lease | None, *, on_event: Callable[[ExecutionEvent], None]
    ) -> ExecutionResult:
        """Run the attempt under a lease that was had before (None for light work), and give it back after it.

        Raises as `dispatch`.
        """
        job = self._chosen(job, on_event)
        if lease is None:
            return await self._execute(job, self._host_spec(job), on_event)
        return await self._under(lease, job, on_event)

    async def capacity(self, job: StageJob) -> int:
        """Return how many attempts like `job` could start here at this moment."""
        resources = clamped(job.resources, self._inventory)
        leased = replace(job, resources=resources).leased
        return await self._leases.room(resources) if leased else self._inventory.cpus

    async def give_back(self, lease: Lease) -> None:
        """Give a lease of `try_lease` back that was not used."""
        await self._leases.release(lease)

    def shared_engine(self, job: StageJob) -> str | None:
        """Return the engine whose tasks may share the lease of `job`, as the lease book names it, or None."""
        return self._engine_of(self._chosen(job, lambda _: None))[0]

    def host_of(self, job: StageJob, lease: Lease) -> HostSpec:
        """Return the host that `dispatch_leased` uses."""
        return self._host_spec(self._chosen(job, lambda _: None), lease.devices, lease.share)

    def _chosen(self, job: StageJob, on_event: Callable[[ExecutionEvent], None]) -> StageJob:
        """Return `job` with the executor that runs it here, and tell which and why."""
        choice = choose(job.executor, job.resources, self._settings, self._inventory)
        executor = choice.executor
        if job.executor.preferred or job.executor.why:
            message = f"engine: {executor.environment} ({choice.why})"
            on_event(ExecutionEvent("log", {"message": message, "level": "info"}, time.time()))
        settings = {**job.request.settings, "engine_why": choice.why}
        request = replace(job.request, executor=executor.path, settings=settings)
        options = job.engine_options
        if executor.options is not None:
            options = {name: value for name, value in options.items() if name in executor.options}
        return replace(job, executor=executor, request=request, engine_options=options)

    async def _execute(
        self, job: StageJob, spec: HostSpec, on_event: Callable[[ExecutionEvent], None]
    ) -> ExecutionResult:
        from mloc_prefect.execution.client import execute

        restarts = job.executor.restarts
        while True:
            try:
                return await execute(
                    job.request, spec, self._hosts, on_event=on_event, timeout=job.timeout, stall=job.stall
                )
            except ExecutionError as error:
                if restarts < 1 or not _host_died(error):
                    raise
                restarts -= 1
                message = f"{error.message}; started again within this attempt, finished rows are kept"
                on_event(ExecutionEvent("log", {"message": message, "level": "warning"}, time.time()))

    def _host_spec(self, job: StageJob, devices: tuple[str, ...] = (), share: float = 1.0) -> HostSpec:
        from mloc_prefect.execution.hosttypes import HostSpec

        return HostSpec(
            executor=job.executor.path,
            python=interpreter(job.executor, self._settings),
            options=dict(job.engine_options),
            devices=devices,
            share=share,
        )

    async def _under(self, lease: Lease, job: StageJob, on_event: Callable[[ExecutionEvent], None]) -> ExecutionResult:
        try:
            return await self._execute(job, self._host_spec(job, lease.devices, lease.share), on_event)
        finally:
            await asyncio.shield(self._leases.release(lease))

    async def _acquire(self, job: StageJob, on_event: Callable[[ExecutionEvent], None]) -> Lease:
        def waiting(why: str) -> None:
            on_event(ExecutionEvent("waiting", {"reason": why}, time.time()))

        share, engine = self._engine_of(job)
        return await self._leases.acquire(
            self._clamped(job).resources,
            holder=job.title,
            on_wait=waiting,
            share=share,
            engine=engine,
            priority=job.priority,
        )

    def _clamped(self, job: StageJob) -> StageJob:
        return replace(job, resources=clamped(job.resources, self._inventory))

    def _engine_of(self, job: StageJob) -> tuple[str | None, str | None]:
        """Return the engine of a chosen job as the lease book wants it: to be shared, or to be found warm again."""
        key = self._host_spec(job).key
        return (key, None) if job.executor.shared else (None, key)


class MemoryDispatcher:
    """Runs attempts as calls of a function in this process: the twin for tests.

    Args:
        run: Gets the request and `emit(kind, **data)`; returns the result object, or raises.
    """

    def __init__(self, run: Callable[[ExecutionRequest, Callable[..., None]], Any]) -> None:
        self._run = run
        self.requests: list[ExecutionRequest] = []

    async def dispatch(self, job: StageJob, *, on_event: Callable[[ExecutionEvent], None]) -> ExecutionResult:
        """See `StageDispatcher`."""

        def emit(kind: Any, **data: Any) -> None:
            on_event(ExecutionEvent(kind, data, time.time()))

        self.requests.append(job.request)
        try:
            result = self._run(job.request, emit)
            result = await result if asyncio.iscoroutine(result) else result
        except UserError as error:
            failure = ExecutionFailure(str(error), kind="user", error_type=type(error).__name__)
            raise ExecutionError(failure.message, retryable=False, failure=failure) from error
        path = Path(job.request.attempt_dir) / "result.json"
        atomic.write_json(path, result)
        return ExecutionResult(str(path), summary={"engine": "memory"})


_in_force: ContextVar[StageDispatcher | None] = ContextVar("mloc_dispatcher", default=None)


@contextmanager
def use_dispatcher(dispatcher: StageDispatcher) -> Iterator[None]:
    """Make `dispatcher` the one that flows started in this context use when their options name none."""
    token = _in_force.set(dispatcher)
    try:
        yield
    finally:
        _in_force.reset(token)


def current_dispatcher() -> StageDispatcher | None:
    """Return the dispatcher in force, or None."""
    return _in_force.get()


@asynccontextmanager
async def local_dispatcher(settings: MlocSettings) -> AsyncIterator[StageDispatcher]:
    """Yield a dispatcher with a host pool of its own, which ends with the block."""
    from mloc_prefect.execution.dirs import run_dir
    from mloc_prefect.execution.hosts import HostPool

    pool = HostPool(run_dir(settings.home), settings.host_idle_seconds, settings.host_start_seconds)
    async with pool:
        yield on_hosts(settings, pool)


def on_hosts(settings: MlocSettings, hosts: HostProvider) -> InProcessDispatcher:
    """Return the dispatcher of this machine for `hosts`, with the lease book that all its processes share."""
    from mloc_prefect.worker.leases import machine_book

    leases = machine_book(settings, read_inventory(settings))
    return InProcessDispatcher(settings=settings, hosts=hosts, leases=leases, inventory=leases.inventory)


def interpreter(executor: ExecutorRef, settings: MlocSettings) -> str:
    """Return the Python that runs an executor: the configured one of its environment, then a built one, else this."""
    return interpreter_of(executor.environment, settings.home, settings.python)


def _host_died(error: ExecutionError) -> bool:
    """Return whether the process ended, or its engine did, by no fault of the task and not for want of memory."""
    failure = error.failure
    if failure is None or failure.kind == "oom":
        return False
    return failure.kind in {"killed", "exited"} or failure.error_type == "EngineDeadError"


def clamped(request: ResourceRequest, inventory: Inventory) -> ResourceRequest:
    """Return `request` cut down to what the machine has: fewer GPUs, any type, or the CPU; no tags, cores or RAM."""
    if misfit(request, inventory) is None:
        return request
    request = replace(request, cpus=None, memory_bytes=None, tags=())
    if wanted_gpus(request) <= len(matching_gpus(request, inventory.gpus)):
        return request
    count = min(request.gpu_count, len(inventory.gpus))
    return replace(request, gpu_count=count, gpu_type=None, gpu_memory_bytes=None)
