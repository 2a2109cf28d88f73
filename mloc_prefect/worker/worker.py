"""The `mloc-gpu` worker type: runs our flows in its own loop, next to warm executor hosts, other flows as processes.

prefect work-pool create gpu --type mloc-gpu
prefect worker start --pool gpu
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import httpx
from prefect.exceptions import ObjectNotFound, PrefectException, PrefectSignal
from prefect.states import Pending
from prefect.workers.process import ProcessWorker

from mloc_prefect.errors import DispatchError, MlocError, only_error, reason
from mloc_prefect.worker.job_configuration import MlocJobConfiguration, MlocVariables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from anyio.abc import TaskStatus
    from prefect.client.schemas.objects import FlowRun, State
    from prefect.flows import Flow
    from prefect.workers.base import BaseWorkerResult
    from prefect.workers.process import ProcessJobConfiguration, ProcessWorkerResult

    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.worker.worker_services import WorkerServices

_DRAIN_LOOK = 0.1
_SETTLE_SECONDS = 10.0  # for a server that is slow


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
        from mloc_prefect.cluster.identity import worker_id
        from mloc_prefect.process.proxies import bypass_proxies
        from mloc_prefect.settings import get_settings

        bypass_proxies()  # `prefect worker start` runs no code of ours before
        with _one_line_errors():
            self._settings = settings or get_settings()
            self.name = name or worker_id(self._settings)
        super().__init__(*args, **(kwargs | {"name": self.name}))
        self._coordinator_only = coordinator_only
        self._poll_turn = asyncio.Lock()
        self._services: WorkerServices | None = None
        self._entered: set[UUID] = set()
        self._draining = False
        self._drain: asyncio.Task[None] | None = None
        self._drain_until = 0.0
        self._main: asyncio.Task[Any] | None = None

    async def start(
        self, run_once: bool = False, with_healthcheck: bool = False, printer: Callable[..., None] = print
    ) -> None:
        """Run until stopped; a mistake in our settings ends the process with one line before anything starts."""
        with _one_line_errors():
            await self._start(run_once=run_once, with_healthcheck=with_healthcheck, printer=printer)

    async def _start(self, **options: Any) -> None:
        """Run until stopped.

        Raises:
            MlocError: It cannot start, e.g. as another process has its name.
        """
        from mloc_prefect.hardware.inventory import read_inventory
        from mloc_prefect.prefect_ext.tested_version import newer_than_tested
        from mloc_prefect.worker.signals import stopping_on_signals

        with _one_line_errors():
            read_inventory(self._settings)
        if (newer := newer_than_tested()) is not None:
            self._logger.warning(newer)
        self._main = asyncio.current_task()
        with stopping_on_signals(self._begin_drain):
            try:
                await super().start(**options)
            except BaseExceptionGroup as group:  # Prefect's task group wraps what ends it
                cause = only_error(group)
                if not isinstance(cause, MlocError):
                    raise
                raise cause from None

    async def serve(self) -> None:
        """Run until a signal ends it; see `worker.main.run_worker`."""
        try:
            await self._start()
        except asyncio.CancelledError:
            if not self._draining:
                raise

    async def setup(self) -> None:
        """Connect, start hosts and leases, publish the worker, and watch for runs to start and to cancel."""
        from mloc_prefect.prefect_ext.client_retries import keep_retries_short
        from mloc_prefect.process.notify import report_ready
        from mloc_prefect.worker.worker_services import WorkerBindings, WorkerServices

        keep_retries_short()
        await super().setup()
        bindings = WorkerBindings(
            poll=self._poll,
            limiter=lambda: self._limiter,
            work_pool=lambda: self._work_pool,
            ahead=self._prefetch_seconds,
            stop=self._stop,
        )
        services = WorkerServices(
            self._settings,
            name=self.name,
            pool=self._work_pool_name,
            queues=self._work_queues,
            coordinator_only=self._coordinator_only,
            bindings=bindings,
        )
        try:
            self._services = await services.__aenter__()
        except BaseException as error:
            await super().teardown(type(error), error, error.__traceback__)
            raise
        report_ready()

    async def teardown(self, *exc_info: Any) -> None:
        """End runs in the loop and hosts first, while the API can still be reached."""
        if self._services is not None:
            with anyio.CancelScope(shield=True):  # an unhandled error has cancelled all that Prefect waits for
                try:
                    await self._settle(self._services)
                finally:  # a second signal ends the wait, not what follows
                    await self._services.__aexit__(None, None, None)
        self._services = None
        await super().teardown(*exc_info)

    async def _settle(self, services: WorkerServices) -> None:
        """Claim nothing more, and wait for claims under way: their runs would stay Pending indefinitely."""
        from mloc_prefect.prefect_ext.worker_internals import being_submitted

        services.draining = True
        try:
            async with asyncio.timeout(_SETTLE_SECONDS), self._poll_turn:
                while being_submitted(self):
                    await asyncio.sleep(_DRAIN_LOOK)
        except TimeoutError:
            self._logger.warning("the server is slow: runs that were just being claimed may stay Pending")

    def _stop(self) -> None:
        """Drain and end before other workers declare this one lost, whatever time runs are given."""
        if not self._draining and self._main is not None:
            self._begin_drain(self._end)
        soon = asyncio.get_running_loop().time() + self._settings.heartbeat_ttl / 3
        self._drain_until = min(self._drain_until, soon)

    def _end(self) -> None:
        if self._main is not None:
            self._main.cancel()

    def _begin_drain(self, stop: Callable[[], None]) -> None:
        """Take no further runs; stop when the current ones have ended, or after `drain_seconds`."""
        self._draining = True
        if self._services is not None:
            self._services.draining = True

        self._drain_until = asyncio.get_running_loop().time() + self._settings.drain_seconds

        async def drain() -> None:
            while self._entered and asyncio.get_running_loop().time() < self._drain_until:
                await asyncio.sleep(_DRAIN_LOOK)
            stop()

        self._drain = asyncio.create_task(drain(), name="drain")

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Poll, one poll at a time: two at once would claim more than there is room for."""
        return await self._claim(settled=True)

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: TaskStatus[Any] | None = None,
    ) -> ProcessWorkerResult:
        """Run a user's flow in a process of its own; our own flows come by `_run_in_loop`."""
        self._entered.add(flow_run.id)
        try:
            return await self._run_process(flow_run, configuration, task_status)
        finally:
            await self._leave(flow_run.id)

    async def _run_process(
        self, flow_run: FlowRun, configuration: ProcessJobConfiguration, task_status: TaskStatus[Any] | None
    ) -> ProcessWorkerResult:
        if not self._settings.user_flows:
            from mloc_prefect.worker.own_runs import HINT, REFUSAL

            raise DispatchError(REFUSAL, hint=HINT)
        lease = self._services.lease_of(flow_run.id) if self._services is not None else None
        if lease is not None:
            from mloc_prefect.execution.hosts.host_environment import device_variables

            configuration.env = {**configuration.env, **device_variables(lease.devices)}
        result = await super().run(flow_run, configuration, task_status)
        if result.status_code == 0 and self._services is not None:  # its own engine has reported the end
            self._services.left.note_ended(flow_run.id)
        return result

    async def _run_in_loop(self, flow: Flow[..., Any], flow_run: FlowRun, services: WorkerServices) -> None:
        """Run one of our flows, which this worker has just claimed, to its end.

        It has no infrastructure of its own, so what the stock worker asks and stores for that is left out.
        """
        from mloc_prefect.prefect_ext.retry import is_outage

        log = self.get_flow_run_logger(flow_run)
        try:
            if not await services.pending.still_held(flow_run.id):
                log.warning("not begun: it was given to another worker meanwhile")
                return
            await self._give_worker_labels_to_flow_run(flow_run.id)
            if await services.run(flow, flow_run) != 0:
                await self._propose_crashed_state(flow_run, "its engine ended without a report")
        except ObjectNotFound:
            log.info("the run was deleted")
            services.left.note_ended(flow_run.id)
        except httpx.HTTPError as error:
            if is_outage(error):
                log.warning("the server does not answer, the run is looked after later: %s", reason(error))
            else:  # the same request would be refused each time
                refusal = f"the server refused a request of its start: {reason(error)}"
                await self._propose_crashed_state(flow_run, refusal)
        except (Exception, PrefectSignal):  # boundary: an error in the task group would cancel all runs of this worker
            log.exception("the run ended by an unexpected error, it is looked after later")
        finally:
            self._release_limit_slot(flow_run.id)
            services.left.note_left(flow_run.id)
            await self._leave(flow_run.id)

    async def _leave(self, flow_run_id: UUID) -> None:
        """Give back what a run had that has ended here."""
        self._entered.discard(flow_run_id)
        if self._services is not None:
            await self._services.drop(flow_run_id)
            self._services.freed()

    async def _poll(self) -> set[UUID]:
        return {flow_run.id for flow_run in await self._claim(settled=False)}

    async def _claim(self, *, settled: bool) -> list[FlowRun]:
        """Claim scheduled runs that fit, and start them; workflow runs whatever the limit."""
        from mloc_prefect.prefect_ext.worker_internals import being_submitted, is_synced, note_poll, without_limit

        if self._services is None or not is_synced(self):
            return []
        async with self._poll_turn:
            here = {*being_submitted(self), *self._entered}
            claims = await self._services.claim(self.client, here, settled=settled)
            note_poll(self)
            with without_limit(self):
                started = await self._submit_scheduled_flow_runs([c.entry for c in claims if not c.slot])
            started += await self._submit_scheduled_flow_runs([c.entry for c in claims if c.slot])
            for flow_run in [c.entry.flow_run for c in claims]:
                if flow_run.id not in being_submitted(self):
                    await self._services.drop(flow_run.id)
            return started

    async def _submit_run(self, flow_run: FlowRun) -> None:
        """Start a run; give lease and slot back if another worker was faster."""
        from mloc_prefect.prefect_ext.waiting_requests import requests_wait
        from mloc_prefect.prefect_ext.worker_internals import not_submitted

        services = self._services

        def wanted() -> bool:  # before the claim others may have the run; at the end of the worker it is handed over
            return services is not None and services.left.holds(flow_run.id) and not services.draining

        try:
            with requests_wait(f"run {flow_run.name!r}", wanted):
                flow = await self._flow_in_loop(flow_run)
                if services is None or flow is None:
                    await super()._submit_run(flow_run)
                elif await self._propose_pending_state(flow_run):
                    self._entered.add(flow_run.id)
                    assert self._runs_task_group is not None  # of the worker's context, in which runs are submitted
                    self._runs_task_group.start_soon(self._run_in_loop, flow, flow_run, services)
        except httpx.HTTPError as error:
            self.get_flow_run_logger(flow_run).warning("not started, will be claimed again later: %s", reason(error))
            self._note_unknown_claim(flow_run)
        except (Exception, PrefectSignal):  # boundary: Prefect would cancel all runs of this worker for it
            self.get_flow_run_logger(flow_run).exception("not started, will be claimed again later")
            self._note_unknown_claim(flow_run)
        finally:
            not_submitted(self, flow_run.id, runs=flow_run.id in self._entered)
            if flow_run.id not in self._entered and self._services is not None:
                self._services.left.note_left(flow_run.id)
                await self._services.drop(flow_run.id)

    async def _flow_in_loop(self, flow_run: FlowRun) -> Flow[..., Any] | None:
        """Return our flow that a run is of, or None when the stock worker is to start it, or to refuse it."""
        if self._services is None:
            return None
        try:
            return await self._services.own_runs.flow_of(self.client, self._work_pool, flow_run)
        except ObjectNotFound:  # its deployment was deleted: the stock worker cancels the run
            return None

    def _note_unknown_claim(self, flow_run: FlowRun) -> None:
        if self._services is not None:
            self._services.note_unknown_claim(flow_run.id)

    async def _submit_run_and_capture_errors(
        self, flow_run: FlowRun, task_status: TaskStatus[Any] | None = None
    ) -> BaseWorkerResult | Exception:
        """Run it to its end; a run that leaves our hands without a known end is looked after later."""
        try:
            return await super()._submit_run_and_capture_errors(flow_run, task_status)
        finally:
            if self._services is not None:
                self._services.left.note_left(flow_run.id)

    async def _propose_pending_state(self, flow_run: FlowRun) -> bool:
        """Claim a run, and store in the same step who did: if this worker is lost now, others know whose it was."""
        from mloc_prefect.prefect_ext.run_facts import taken_by
        from mloc_prefect.prefect_ext.state_reasons import StateCode, StateReason, with_reason

        incarnation = self._services.incarnation if self._services else ""
        pending: State[Any] = Pending(message=taken_by(self.name, incarnation))
        taken = await self._take(flow_run, with_reason(pending, StateReason(StateCode.CLAIMED, self.name, incarnation)))
        if taken and self._services is not None:
            self._services.note_claimed(flow_run.id, incarnation)
        return taken

    async def _take(self, flow_run: FlowRun, pending: State[Any]) -> bool:
        from prefect.utilities.engine import propose_state

        log = self.get_flow_run_logger(flow_run)
        try:
            state = await propose_state(self.client, pending, flow_run_id=flow_run.id)
        except (PrefectSignal, PrefectException) as refusal:  # it was claimed, paused or deleted by another
            log.info("not claimed: %s", reason(refusal))
            return False
        except httpx.HTTPError as error:
            log.warning("not claimed, it is not known whether the server did: %s", reason(error))
            self._note_unknown_claim(flow_run)
            return False
        if not state.is_pending():
            log.info("not claimed: it is %s by now", state.name)
        return state.is_pending()

    async def _propose_submitting_state(self, flow_run: FlowRun) -> None:
        """Leave the run Pending: this state would say less."""

    async def _give_worker_labels_to_flow_run(self, flow_run_id: UUID) -> None:
        """Store which process of which worker has the run."""
        from mloc_prefect.prefect_ext.run_facts import INCARNATION_LABEL, WORKER_LABEL

        labels: dict[str, bool | int | float | str] = {
            WORKER_LABEL: self.name,
            "prefect.worker.type": self.type,
            "prefect.work-pool.name": self._work_pool_name,
            INCARNATION_LABEL: self._services.incarnation if self._services else "",
        }
        await self.client.update_flow_run_labels(flow_run_id, labels)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """End the process with one line when it cannot start."""
    try:
        yield
    except MlocError as error:
        raise SystemExit(f"Error: {error}") from None
