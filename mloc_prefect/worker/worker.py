"""The `mloc-gpu` worker: our flows in its own loop, next to warm executor hosts; every other flow as a process.

prefect work-pool create gpu --type mloc-gpu
prefect worker start --pool gpu
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import anyio
from prefect.workers.process import ProcessJobConfiguration, ProcessVariables, ProcessWorker, ProcessWorkerResult
from pydantic import Field, PrivateAttr

from mloc_prefect.errors import MlocError

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from anyio.abc import TaskStatus
    from prefect.client.schemas.objects import Flow as ApiFlow
    from prefect.client.schemas.objects import FlowRun, WorkPool
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.flows import Flow

    from mloc_prefect.worker.engine import WarmRuns
    from mloc_prefect.worker.wake import Waker

_SLOT_SECONDS = 0.05


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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._poll_turn = asyncio.Lock()
        self._waker: Waker | None = None
        self._warm: WarmRuns | None = None
        self._warm_stack = AsyncExitStack()

    async def start(
        self, run_once: bool = False, with_healthcheck: bool = False, printer: Callable[..., None] = print
    ) -> None:
        """Run until stopped; a mistake in our settings ends the process with one sentence before anything starts."""
        from mloc_prefect.settings import get_settings
        from mloc_prefect.worker.inventory import read_inventory
        from mloc_prefect.worker.signals import stopping_on_signals

        try:
            read_inventory(get_settings())
        except MlocError as error:
            raise SystemExit(f"Error: {error}") from None
        with stopping_on_signals():
            await super().start(run_once=run_once, with_healthcheck=with_healthcheck, printer=printer)

    async def setup(self) -> None:
        """Take up hosts and leases, connect, and watch for runs to start and to cancel."""
        from mloc_prefect.orchestrate.dispatch import local_dispatcher
        from mloc_prefect.settings import get_settings
        from mloc_prefect.worker.engine import WarmRuns
        from mloc_prefect.worker.wake import Waker

        dispatcher = await self._warm_stack.enter_async_context(local_dispatcher(get_settings()))
        await super().setup()
        self._warm = await self._warm_stack.enter_async_context(WarmRuns(dispatcher))
        self._waker = Waker(self._poll, lambda: self._work_pool.id if self._work_pool else None)
        await self._warm_stack.enter_async_context(self._waker.running())

    async def teardown(self, *exc_info: Any) -> None:
        """End warm runs and hosts first, while the API can still be told."""
        await self._warm_stack.aclose()
        self._warm = self._waker = None
        await super().teardown(*exc_info)

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Poll; one at a time, as a poll and a wake-up at once would claim more than there is room for."""
        async with self._poll_turn:
            return await super().get_and_submit_flow_runs()

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: TaskStatus[Any] | None = None,
    ) -> ProcessWorkerResult:
        """Run our own flows here, every other one as a process."""
        try:
            flow = await self._own_flow(flow_run, configuration)
            if flow is None or self._warm is None:
                return await super().run(flow_run, configuration, task_status)
            identifier = f"{socket.gethostname()}:{os.getpid()}:{flow_run.id}"
            (task_status or anyio.TASK_STATUS_IGNORED).started(identifier)
            return MlocWorkerResult(identifier=identifier, status_code=await self._warm.run(flow, flow_run))
        finally:
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
