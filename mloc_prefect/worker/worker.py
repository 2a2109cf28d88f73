"""The `mloc-gpu` worker: our flows in its own loop, next to warm executor hosts; every other flow as a process.

prefect work-pool create gpu --type mloc-gpu
prefect worker start --pool gpu
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
from prefect.workers.process import ProcessJobConfiguration, ProcessVariables, ProcessWorker, ProcessWorkerResult
from pydantic import Field, PrivateAttr

from mloc_prefect.errors import MlocError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from anyio.abc import TaskStatus
    from prefect.client.schemas.objects import Flow as ApiFlow
    from prefect.client.schemas.objects import FlowRun, WorkPool
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.flows import Flow

    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.worker.card import WorkerCard
    from mloc_prefect.worker.engine import WarmRuns
    from mloc_prefect.worker.heartbeat import Heartbeat
    from mloc_prefect.worker.place import Place
    from mloc_prefect.worker.wake import Waker

_SLOT_SECONDS = 0.05
_DRAIN_LOOK = 0.1


class MlocJobConfiguration(ProcessJobConfiguration):
    """How one run is started; anything that asks for a process of its own (command, env, directory) gets one."""

    gpu_count: int = Field(default=0, json_schema_extra={"template": "{{ gpu_count }}"})
    gpu_type: str | None = Field(default=None, json_schema_extra={"template": "{{ gpu_type }}"})
    gpu_memory: str | None = Field(default=None, json_schema_extra={"template": "{{ gpu_memory }}"})

    _own_process: bool = PrivateAttr(default=False)

    def prepare_for_flow_run(
        self,
        flow_run: FlowRun,
        deployment: DeploymentResponse | None = None,
        flow: ApiFlow | None = None,
        work_pool: WorkPool | None = None,
        worker_name: str | None = None,
        worker_id: UUID | None = None,
    ) -> None:
        """Note what the deployment asked for before Prefect fills in its own."""
        self._own_process = bool(self.env or self.command or self.working_dir)
        super().prepare_for_flow_run(flow_run, deployment, flow, work_pool, worker_name, worker_id=worker_id)

    @property
    def own_process(self) -> bool:
        """Whether command, environment or directory were set for this run."""
        return self._own_process


class MlocVariables(ProcessVariables):
    """Variables of the pool and of deployments on it."""

    gpu_count: int = Field(default=0, ge=0, title="GPUs", description="GPUs that the run needs; 0 for a coordinator.")
    gpu_type: str | None = Field(
        default=None, title="GPU type", description="Part of the device name, e.g. A100; empty for any."
    )
    gpu_memory: str | None = Field(
        default=None, title="GPU memory", description="Memory that each GPU must have, e.g. 40Gi; empty for any."
    )


class MlocWorkerResult(ProcessWorkerResult):
    """How a run ended: in the worker's loop with status 0 when its state has been reported already."""


class MlocGpuWorker(ProcessWorker):
    """Polls a pool, is woken by events, and runs MLOC flows warm."""

    type = "mloc-gpu"
    job_configuration = MlocJobConfiguration
    job_configuration_variables = MlocVariables  # type: ignore[assignment] # in the base, `type` is a field already

    _display_name = "MLOC GPU"
    _description = "Runs MLOC workflows in a warm process next to their executors; other flows run as processes."
    _documentation_url = "https://docs.prefect.io/v3/concepts/workers"
    _logo_url = ProcessWorker._logo_url

    def __init__(
        self,
        *args: Any,
        name: str | None = None,
        coordinator_only: bool = False,
        settings: MlocSettings | None = None,
        **kwargs: Any,
    ) -> None:
        with _one_sentence():
            self._settings = settings or _settings()
            self.name = name or _worker_id(self._settings)
        super().__init__(*args, **(kwargs | {"name": self.name}))
        self._coordinator_only = coordinator_only
        self._poll_turn = asyncio.Lock()
        self._waker: Waker | None = None
        self._warm: WarmRuns | None = None
        self._place: Place | None = None
        self._heartbeat: Heartbeat | None = None
        self._incarnation = secrets.token_hex(4)
        self._running = 0
        self._draining = False
        self._drain: asyncio.Task[None] | None = None
        self._warm_stack = AsyncExitStack()

    async def start(
        self, run_once: bool = False, with_healthcheck: bool = False, printer: Callable[..., None] = print
    ) -> None:
        """Run until stopped; a mistake in our settings ends the process with one sentence before anything starts."""
        from mloc_prefect.worker.inventory import read_inventory
        from mloc_prefect.worker.signals import stopping_on_signals

        with _one_sentence():
            read_inventory(self._settings)
        with stopping_on_signals(self._begin_drain):
            await super().start(run_once=run_once, with_healthcheck=with_healthcheck, printer=printer)

    async def serve(self) -> None:
        """Run until a signal ends it; see `worker.main.run_worker`."""
        try:
            await self.start()
        except asyncio.CancelledError:
            if not self._draining:
                raise

    async def setup(self) -> None:
        """Take up hosts and leases, connect, tell the others, and watch for runs to start and to cancel."""
        from mloc_prefect.up.notify import tell_ready
        from mloc_prefect.worker.engine import WarmRuns
        from mloc_prefect.worker.heartbeat import Heartbeat
        from mloc_prefect.worker.place import local_place
        from mloc_prefect.worker.wake import Waker

        self._place = await self._warm_stack.enter_async_context(local_place(self._settings))
        await super().setup()
        self._warm = await self._warm_stack.enter_async_context(WarmRuns(self._place.dispatcher))
        self._heartbeat = Heartbeat(self._settings, self._card(), lambda _: None)
        self._heartbeat.start()
        self._warm_stack.push_async_callback(self._heartbeat.stop)
        self._waker = Waker(self._poll, lambda: self._work_pool.id if self._work_pool else None)
        await self._warm_stack.enter_async_context(self._waker.running())
        tell_ready()

    async def teardown(self, *exc_info: Any) -> None:
        """End warm runs and hosts first, while the API can still be told."""
        await self._warm_stack.aclose()
        self._warm = self._waker = self._place = self._heartbeat = None
        await super().teardown(*exc_info)

    def _begin_drain(self, stop: Callable[[], None]) -> None:
        """Take no further runs; stop when those that are here have ended, or after `drain_seconds`."""
        self._draining = True

        async def drain() -> None:
            end = asyncio.get_running_loop().time() + self._settings.drain_seconds
            while self._busy and asyncio.get_running_loop().time() < end:
                await asyncio.sleep(_DRAIN_LOOK)
            stop()

        self._drain = asyncio.create_task(drain(), name="drain")

    @property
    def _busy(self) -> bool:
        return self._running > 0

    def _card(self) -> WorkerCard:
        from mloc_prefect.worker.card import WorkerCard
        from mloc_prefect.worker.identity import Process

        assert self._place is not None
        card = WorkerCard(
            id=self.name,
            incarnation=self._incarnation,
            pool=self._work_pool_name,
            role="coordinator" if self._coordinator_only else "worker",
            process=Process.own(),
            draining=self._draining,
            heartbeat=self._settings.heartbeat_seconds,
        )
        return card if self._coordinator_only else self._place.fill_in(replace(card, inventory=self._place.inventory))

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Poll; one at a time, as a poll and a wake-up at once would claim more than there is room for."""
        if self._draining:
            return []
        async with self._poll_turn:
            return await super().get_and_submit_flow_runs()

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: TaskStatus[Any] | None = None,
    ) -> ProcessWorkerResult:
        """Run our own flows here, every other one as a process."""
        self._running += 1
        try:
            flow = await self._own_flow(flow_run, configuration)
            if flow is None or self._warm is None:
                return await super().run(flow_run, configuration, task_status)
            identifier = f"{socket.gethostname()}:{os.getpid()}:{flow_run.id}"
            (task_status or anyio.TASK_STATUS_IGNORED).started(identifier)
            return MlocWorkerResult(identifier=identifier, status_code=await self._warm.run(flow, flow_run))
        finally:
            self._running -= 1
            if self._waker is not None and self._limit is not None:  # its slot is free in a moment
                asyncio.get_running_loop().call_later(_SLOT_SECONDS, self._waker.wake)

    async def _poll(self) -> set[UUID]:
        return {flow_run.id for flow_run in await self.get_and_submit_flow_runs()}

    async def _own_flow(self, flow_run: FlowRun, configuration: ProcessJobConfiguration) -> Flow[..., Any] | None:
        from mloc_prefect.worker.engine import own_flow

        if flow_run.deployment_id is None or (
            isinstance(configuration, MlocJobConfiguration) and configuration.own_process
        ):
            return None
        return own_flow(await self.client.read_deployment(flow_run.deployment_id))


@contextmanager
def _one_sentence() -> Iterator[None]:
    """End the process with one sentence when our settings have a mistake."""
    try:
        yield
    except MlocError as error:
        raise SystemExit(f"Error: {error}") from None


def _settings() -> MlocSettings:
    from mloc_prefect.settings import get_settings

    return get_settings()


def _worker_id(settings: MlocSettings) -> str:
    from mloc_prefect.worker.identity import worker_id

    return worker_id(settings)
