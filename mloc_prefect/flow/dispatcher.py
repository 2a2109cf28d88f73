"""Defines `StageDispatcher`, which executes attempts somewhere, and the dispatchers of one machine."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mloc_prefect.artifacts import atomic
from mloc_prefect.errors import ExecutionError, ExecutionFailure
from mloc_prefect.execution.environments.catalog import interpreter_of
from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionResult, UserError
from mloc_prefect.flow.engine_choice import choose_engine
from mloc_prefect.hardware.inventory import matching_gpus, misfit, read_inventory, wanted_gpus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

    from mloc_prefect.execution.host_types import HostSpec
    from mloc_prefect.execution.hosts import HostProvider
    from mloc_prefect.execution.protocol import ExecutionRequest
    from mloc_prefect.hardware.inventory import Inventory
    from mloc_prefect.leases import DeviceReturn, Lease, LeaseBook
    from mloc_prefect.plan.resources import ResourceRequest
    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.tasks.base import ExecutorRef

logger = logging.getLogger("prefect.mloc.worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageJob:
    """One attempt at a stage or a shard, with what a dispatcher needs to find a machine for it.

    Attributes:
        request: What the executor gets.
        executor: The code that runs it.
        engine_options: Options that two tasks must have in common to use one warm host.
        resources: What it asks of a machine.
        timeout: Seconds it may run (`spec.timeoutSec`), or None.
        stall: Seconds without any event after which it is ended.
        holder: Name for people who look at leases.
        priority: `spec.priority`; larger is served first.
        avoid: Workers on which it failed before; others are preferred.
        document: The effective document without its `spec`; for MLOC workers, which get whole documents.
        results: Results of the tasks it depends on by stage name, each with a `result` level; None when it depends on
            none. Also for MLOC workers only: our executors get `request.upstream`.
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
        """Whether it needs a lease; light work that asks for no GPU runs without one."""
        return self.executor.engine or wanted_gpus(self.resources) > 0

    @property
    def title(self) -> str:
        """Name for people who look at leases."""
        return self.holder or self.request.name


@dataclass(frozen=True, slots=True)
class LocalJob:
    """A job with the engine that runs it on this machine; made once, by `InProcessDispatcher.choose_engine`.

    Attributes:
        job: The job, with the executor of that engine and with the options and settings that it reads.
        choice: One line for the log about the engine and why, or "" when the task type has one engine only.
    """

    job: StageJob
    choice: str = ""


class StageDispatcher(Protocol):
    """Runs one attempt somewhere."""

    async def dispatch(self, job: StageJob, *, on_event: Callable[[ExecutionEvent], None]) -> ExecutionResult:
        """Run the attempt and return its result; cancelling the call cancels the attempt.

        Raises:
            ExecutionError: It failed; `.retryable` says whether another attempt may go better.
            DispatchError: No machine could be found.
        """


class InProcessDispatcher:
    """Runs attempts on executor hosts of this machine, each engine under a lease.

    Args:
        settings: For the interpreters of executors.
        hosts: Owner of the executor processes.
        leases: Book of leased devices.
        inventory: What the machine has; requests beyond it (`--ignore-resources`) are reduced to it.
        returns: Keeps the lease of an engine that failed until the memory of its devices is free; None = no wait.
    """

    def __init__(
        self,
        *,
        settings: MlocSettings,
        hosts: HostProvider,
        leases: LeaseBook,
        inventory: Inventory,
        returns: DeviceReturn | None = None,
    ) -> None:
        self._settings = settings
        self._hosts = hosts
        self._leases = leases
        self._inventory = inventory
        self._returns = returns

    async def dispatch(self, job: StageJob, *, on_event: Callable[[ExecutionEvent], None]) -> ExecutionResult:
        """See `StageDispatcher`; waits for a lease as long as it takes."""
        local = self.choose_engine(job)
        _log_choice(local, on_event)
        if not self._clamped(local.job).leased:
            return await self._execute(local.job, self._host_spec(local.job), on_event)
        lease = await self._acquire(local.job, on_event)
        return await self._under(lease, local.job, on_event)

    def choose_engine(self, job: StageJob) -> LocalJob:
        """Return `job` with the engine that runs it here; all other methods that take a `LocalJob` go by that."""
        choice = choose_engine(job.executor, job.resources, self._settings, self._inventory)
        executor = choice.executor
        had_choice = bool(job.executor.preferred or job.executor.why)
        settings = {**job.request.settings, "engine_why": choice.why}
        options = job.engine_options
        if executor.options is not None:
            options = {name: value for name, value in options.items() if name in executor.options}
        request = replace(job.request, executor=executor.path, settings=settings)
        return LocalJob(
            replace(job, executor=executor, request=request, engine_options=options),
            f"engine: {executor.environment} ({choice.why})" if had_choice else "",
        )

    async def try_lease(self, local: LocalJob) -> Lease | None:
        """Return a lease under which `dispatch_leased` can run the job now, or None; never waits.

        Raises:
            DispatchError: This machine can never run it.
        """
        job = local.job
        share, engine = self._lease_engine(job)
        return await self._leases.try_acquire(
            job.resources, holder=job.title, share=share, engine=engine, priority=job.priority
        )

    async def wait_lease(self, local: LocalJob, *, waited: float = 0.0) -> Lease:
        """Wait for a lease under which `dispatch_leased` can run the job; cancelling the call ends the wait.

        Args:
            local: The attempt.
            waited: Seconds that it has already waited elsewhere.

        Raises:
            DispatchError: This machine can never run it.
        """
        job = local.job
        share, engine = self._lease_engine(job)
        return await self._leases.acquire(
            job.resources, holder=job.title, share=share, engine=engine, priority=job.priority, waited=waited
        )

    async def dispatch_leased(
        self, local: LocalJob, lease: Lease | None, *, on_event: Callable[[ExecutionEvent], None]
    ) -> ExecutionResult:
        """Run the attempt under a lease that the caller has got (None for light work), and release it at the end.

        Raises as `dispatch`.
        """
        _log_choice(local, on_event)
        if lease is None:
            return await self._execute(local.job, self._host_spec(local.job), on_event)
        return await self._under(lease, local.job, on_event)

    async def capacity(self, job: StageJob) -> int:
        """Return how many attempts like `job` could start here at this moment."""
        resources = clamped(job.resources, self._inventory)
        leased = replace(job, resources=resources).leased
        return await self._leases.room(resources) if leased else self._inventory.cpus

    async def give_back(self, lease: Lease) -> None:
        """Release a lease of `try_lease` that was not used."""
        await self._leases.release(lease)

    def shared_engine(self, local: LocalJob) -> str | None:
        """Return the engine whose tasks may share the lease of the job, as the lease book names it, or None."""
        return self._lease_engine(local.job)[0]

    def host_of(self, local: LocalJob, lease: Lease) -> HostSpec:
        """Return the host that `dispatch_leased` uses."""
        return self._host_spec(local.job, lease.devices, lease.share)

    async def _execute(
        self,
        job: StageJob,
        spec: HostSpec,
        on_event: Callable[[ExecutionEvent], None],
        free: Callable[[], Awaitable[None]] | None = None,
    ) -> ExecutionResult:
        from mloc_prefect.execution.hosts.attempt_client import execute

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
                on_event(_warning(message))
                if free is not None:
                    await free()

    def _host_spec(self, job: StageJob, devices: tuple[str, ...] = (), share: float = 1.0) -> HostSpec:
        from mloc_prefect.execution.host_types import HostSpec

        return HostSpec(
            executor=job.executor.path,
            python=interpreter(job.executor, self._settings),
            options=dict(job.engine_options),
            devices=devices,
            share=share,
        )

    async def _under(self, lease: Lease, job: StageJob, on_event: Callable[[ExecutionEvent], None]) -> ExecutionResult:
        def report(text: str) -> None:
            logger.warning("%s: %s", job.title, text)
            on_event(_warning(text))

        ended = True  # whether the engine may have ended: it stays warm after a task that succeeds
        free = None
        try:
            free = await self._returns.watch(lease.devices, report) if self._returns is not None else None
            spec = self._host_spec(job, lease.devices, lease.share)
            result = await self._execute(job, spec, on_event, free)
            ended = False
            return result
        finally:
            await asyncio.shield(self._return_lease(lease, free if ended else None))

    async def _return_lease(self, lease: Lease, free: Callable[[], Awaitable[None]] | None) -> None:
        try:
            if free is not None:
                await free()
        finally:
            await self._leases.release(lease)

    async def _acquire(self, job: StageJob, on_event: Callable[[ExecutionEvent], None]) -> Lease:
        def waiting(why: str) -> None:
            on_event(ExecutionEvent("waiting", {"reason": why}, time.time()))

        share, engine = self._lease_engine(job)
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

    def _lease_engine(self, job: StageJob) -> tuple[str | None, str | None]:
        """Return the engine of a job as the lease book wants it: to be shared, or to be found warm again."""
        key = self._host_spec(job).key
        return (key, None) if job.executor.shared else (None, key)


class MemoryDispatcher:
    """Runs attempts as calls of a function in this process; for tests.

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
    """Make `dispatcher` the default of flows that are started in this context."""
    token = _in_force.set(dispatcher)
    try:
        yield
    finally:
        _in_force.reset(token)


def current_dispatcher() -> StageDispatcher | None:
    """Return the default dispatcher of this context, or None."""
    return _in_force.get()


@asynccontextmanager
async def local_dispatcher(settings: MlocSettings) -> AsyncIterator[StageDispatcher]:
    """Yield a dispatcher with its own host pool, which ends with the block."""
    from mloc_prefect.execution.hosts import HostPool
    from mloc_prefect.process.run_dir import run_dir

    pool = HostPool(run_dir(settings.home), settings.host_idle_seconds, settings.host_start_seconds)
    async with pool:
        yield on_hosts(settings, pool)


def on_hosts(settings: MlocSettings, hosts: HostProvider) -> InProcessDispatcher:
    """Return the dispatcher of this machine for `hosts`, with the lease book that all its processes share."""
    from mloc_prefect.leases import device_return, machine_book

    leases, returns = machine_book(settings, read_inventory(settings)), device_return(settings)
    return InProcessDispatcher(
        settings=settings, hosts=hosts, leases=leases, inventory=leases.inventory, returns=returns
    )


def interpreter(executor: ExecutorRef, settings: MlocSettings) -> str:
    """Return the Python that runs an executor: the configured one of its environment, a built one, or this one."""
    return interpreter_of(executor.environment, settings.home, settings.python)


def _log_choice(local: LocalJob, on_event: Callable[[ExecutionEvent], None]) -> None:
    if local.choice:
        on_event(ExecutionEvent("log", {"message": local.choice, "level": "info"}, time.time()))


def _warning(text: str) -> ExecutionEvent:
    return ExecutionEvent("log", {"message": text, "level": "warning"}, time.time())


def _host_died(error: ExecutionError) -> bool:
    """Return whether the process or its engine died, other than by a fault of the task or for lack of memory."""
    failure = error.failure
    if failure is None or failure.kind == "oom":
        return False
    return failure.kind in {"killed", "exited"} or failure.error_type == "EngineDeadError"


def clamped(request: ResourceRequest, inventory: Inventory) -> ResourceRequest:
    """Return `request` reduced to what the machine has: fewer GPUs, any type, or the CPU; no tags, cores or RAM."""
    if misfit(request, inventory) is None:
        return request
    request = replace(request, cpus=None, memory_bytes=None, tags=())
    if wanted_gpus(request) <= len(matching_gpus(request, inventory.gpus)):
        return request
    count = min(request.gpu_count, len(inventory.gpus))
    return replace(request, gpu_count=count, gpu_type=None, gpu_memory_bytes=None)
