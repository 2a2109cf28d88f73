"""The `mloc-gpu` worker: our flows in its own loop, next to warm executor hosts; every other flow as a process.

prefect work-pool create gpu --type mloc-gpu
prefect worker start --pool gpu
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import httpx
from prefect.exceptions import PrefectException, PrefectSignal
from prefect.states import Pending
from prefect.workers.process import ProcessJobConfiguration, ProcessVariables, ProcessWorker, ProcessWorkerResult
from pydantic import Field, PrivateAttr

from mloc_prefect.errors import MlocError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from anyio.abc import TaskStatus
    from prefect.client.schemas.objects import Flow as ApiFlow
    from prefect.client.schemas.objects import FlowRun, State, WorkPool
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.flows import Flow

    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.worker.node import Node

_DRAIN_LOOK = 0.1
_SETTLE_SECONDS = 10.0  # for a server that is slow


class MlocJobConfiguration(ProcessJobConfiguration):
    """How one run is started; anything that asks for a process of its own (command, env, directory) gets one."""

    gpu_count: int = Field(default=0, json_schema_extra={"template": "{{ gpu_count }}"})
    gpu_type: str | None = Field(default=None, json_schema_extra={"template": "{{ gpu_type }}"})
    gpu_memory: str | None = Field(default=None, json_schema_extra={"template": "{{ gpu_memory }}"})

    _own_process: bool = PrivateAttr(default=False)
    _deployment: Any = PrivateAttr(default=None)

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
        self._deployment = deployment
        super().prepare_for_flow_run(flow_run, deployment, flow, work_pool, worker_name, worker_id=worker_id)

    @property
    def deployment(self) -> DeploymentResponse | None:
        """Deployment of the run, as it was read for it."""
        found: DeploymentResponse | None = self._deployment
        return found

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
        self._node: Node | None = None
        self._entered: set[UUID] = set()
        self._draining = False
        self._drain: asyncio.Task[None] | None = None
        self._drain_until = 0.0
        self._main: asyncio.Task[Any] | None = None

    async def start(
        self, run_once: bool = False, with_healthcheck: bool = False, printer: Callable[..., None] = print
    ) -> None:
        """Run until stopped; a mistake in our settings ends the process with one sentence before anything starts."""
        from mloc_prefect.worker.inventory import read_inventory
        from mloc_prefect.worker.signals import stopping_on_signals

        with _one_sentence():
            read_inventory(self._settings)
        self._main = asyncio.current_task()
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
        """Connect, take up hosts and leases, tell the others, and watch for runs to start and to cancel."""
        from mloc_prefect.up.notify import tell_ready
        from mloc_prefect.worker.node import Bindings, Node

        await super().setup()
        bindings = Bindings(
            poll=self._poll,
            limiter=lambda: self._limiter,
            work_pool=lambda: self._work_pool,
            ahead=self._prefetch_seconds,
            stop=self._stop,
        )
        node = Node(
            self._settings,
            name=self.name,
            pool=self._work_pool_name,
            queues=self._work_queues,
            coordinator_only=self._coordinator_only,
            bindings=bindings,
        )
        try:
            self._node = await node.__aenter__()
        except BaseException as error:
            await super().teardown(type(error), error, error.__traceback__)
            raise
        tell_ready()

    async def teardown(self, *exc_info: Any) -> None:
        """End warm runs and hosts first, while the API can still be told."""
        if self._node is not None:
            with anyio.CancelScope(shield=True):  # an error that nobody took has cancelled all that Prefect waits for
                try:
                    await self._settle(self._node)
                finally:  # a second signal ends the wait, not what follows
                    await self._node.__aexit__(None, None, None)
        self._node = None
        await super().teardown(*exc_info)

    async def _settle(self, node: Node) -> None:
        """Take nothing more, and wait for what is just being taken: it would stay Pending, ours for ever."""
        from mloc_prefect.worker._prefect import being_submitted

        node.draining = True
        try:
            async with asyncio.timeout(_SETTLE_SECONDS), self._poll_turn:
                while being_submitted(self):
                    await asyncio.sleep(_DRAIN_LOOK)
        except TimeoutError:
            self._logger.warning("the server is slow: runs that were just being taken may stay Pending")

    def _stop(self) -> None:
        """Drain and end before the others take us for lost, whatever time is given to what runs here."""
        if not self._draining and self._main is not None:
            self._begin_drain(self._end)
        soon = asyncio.get_running_loop().time() + self._settings.heartbeat_ttl / 3
        self._drain_until = min(self._drain_until, soon)

    def _end(self) -> None:
        if self._main is not None:
            self._main.cancel()

    def _begin_drain(self, stop: Callable[[], None]) -> None:
        """Take no further runs; stop when those that are here have ended, or after `drain_seconds`."""
        self._draining = True
        if self._node is not None:
            self._node.draining = True

        self._drain_until = asyncio.get_running_loop().time() + self._settings.drain_seconds

        async def drain() -> None:
            while self._entered and asyncio.get_running_loop().time() < self._drain_until:
                await asyncio.sleep(_DRAIN_LOOK)
            stop()

        self._drain = asyncio.create_task(drain(), name="drain")

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Poll; one at a time, as a poll and a wake-up at once would claim more than there is room for."""
        return await self._claim(settled=True)

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: TaskStatus[Any] | None = None,
    ) -> ProcessWorkerResult:
        """Run our own flows here, every other one as a process."""
        self._entered.add(flow_run.id)
        try:
            return await self._run(flow_run, configuration, task_status)
        finally:
            self._entered.discard(flow_run.id)
            if self._node is not None:
                await self._node.drop(flow_run.id)
                self._node.freed()

    async def _run(
        self, flow_run: FlowRun, configuration: ProcessJobConfiguration, task_status: TaskStatus[Any] | None
    ) -> ProcessWorkerResult:
        flow = self._own_flow(configuration)
        if flow is not None and self._node is not None:
            identifier = f"{socket.gethostname()}:{os.getpid()}:{flow_run.id}"
            if not await self._node.taken.holds(flow_run.id):
                given = RuntimeError("it was given to another worker meanwhile")
                self.get_flow_run_logger(flow_run).warning("not begun: %s", given)
                # An identifier would be written to the run, which is not ours.
                (task_status or anyio.TASK_STATUS_IGNORED).started(given)
                return MlocWorkerResult(identifier=identifier, status_code=0)
            (task_status or anyio.TASK_STATUS_IGNORED).started(identifier)
            return MlocWorkerResult(identifier=identifier, status_code=await self._node.run(flow, flow_run))
        lease = self._node.lease_of(flow_run.id) if self._node is not None else None
        if lease is not None:
            from mloc_prefect.execution.childenv import device_variables

            configuration.env = {**configuration.env, **device_variables(lease.devices)}
        return await super().run(flow_run, configuration, task_status)

    async def _poll(self) -> set[UUID]:
        return {flow_run.id for flow_run in await self._claim(settled=False)}

    async def _claim(self, *, settled: bool) -> list[FlowRun]:
        """Take what is scheduled and fits, and start it; root runs whatever the limit."""
        from mloc_prefect.worker._prefect import being_submitted, is_synced, note_poll, without_limit

        if self._node is None or not is_synced(self):
            return []
        async with self._poll_turn:
            here = {*being_submitted(self), *self._entered}
            claims = await self._node.claim(self.client, here, settled=settled)
            note_poll(self)
            with without_limit(self):
                started = await self._submit_scheduled_flow_runs([c.entry for c in claims if not c.slot])
            started += await self._submit_scheduled_flow_runs([c.entry for c in claims if c.slot])
            for flow_run in [c.entry.flow_run for c in claims]:
                if flow_run.id not in being_submitted(self):
                    await self._node.drop(flow_run.id)
            return started

    async def _submit_run(self, flow_run: FlowRun) -> None:
        """Start a run; give the lease and the slot back of one that another worker was faster to take."""
        from mloc_prefect.worker._prefect import not_submitted

        try:
            await super()._submit_run(flow_run)
        except (Exception, PrefectSignal):  # boundary: Prefect would cancel all runs of this worker for it
            self.get_flow_run_logger(flow_run).exception("not started, it is taken again later")
            self._doubt(flow_run)
        finally:
            not_submitted(self, flow_run.id, runs=flow_run.id in self._entered)
            if flow_run.id not in self._entered and self._node is not None:
                await self._node.drop(flow_run.id)

    def _doubt(self, flow_run: FlowRun) -> None:
        if self._node is not None:
            self._node.doubt(flow_run.id)

    async def _propose_pending_state(self, flow_run: FlowRun) -> bool:
        """Take a run, and say in the same step who did: should we be lost now, others know whose it was."""
        from mloc_prefect.worker.recovery import taken_by

        incarnation = self._node.incarnation if self._node else ""
        taken = await self._take(flow_run, Pending(message=taken_by(self.name, incarnation)))
        if taken and self._node is not None:
            self._node.taken.add(flow_run.id, incarnation)
        return taken

    async def _take(self, flow_run: FlowRun, pending: State[Any]) -> bool:
        from prefect.utilities.engine import propose_state

        log = self.get_flow_run_logger(flow_run)
        try:
            state = await propose_state(self.client, pending, flow_run_id=flow_run.id)
        except (PrefectSignal, PrefectException) as refusal:  # somebody has taken, paused or deleted it
            log.info("not taken: %s", str(refusal) or type(refusal).__name__)
            return False
        except httpx.HTTPError as error:
            log.warning("not taken, the server does not answer: %s", str(error) or type(error).__name__)
            self._doubt(flow_run)
            return False
        if not state.is_pending():
            log.info("not taken: it is %s by now", state.name)
        return state.is_pending()

    async def _propose_submitting_state(self, flow_run: FlowRun) -> None:
        """Leave it Pending: this state would say less."""

    async def _give_worker_labels_to_flow_run(self, flow_run_id: UUID) -> None:
        """Say which process of which worker has the run."""
        from mloc_prefect.worker.recovery import INCARNATION_LABEL, WORKER_LABEL

        labels: dict[str, bool | int | float | str] = {
            WORKER_LABEL: self.name,
            "prefect.worker.type": self.type,
            "prefect.work-pool.name": self._work_pool_name,
            INCARNATION_LABEL: self._node.incarnation if self._node else "",
        }
        await self.client.update_flow_run_labels(flow_run_id, labels)

    def _own_flow(self, configuration: ProcessJobConfiguration) -> Flow[..., Any] | None:
        from mloc_prefect.worker.engine import own_flow

        if not isinstance(configuration, MlocJobConfiguration) or configuration.own_process:
            return None
        return own_flow(configuration.deployment) if configuration.deployment is not None else None


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
