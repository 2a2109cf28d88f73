"""Coordinates a workflow run: starts each stage as a subflow when the stages above it have ended."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from copy import copy
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import httpx
from prefect import Flow
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException, PrefectSignal
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed

from mloc_prefect.errors import MlocError, UsageError, reason
from mloc_prefect.flow.dispatcher import current_dispatcher, local_dispatcher
from mloc_prefect.flow.fencing import ApiFence, NoFence, RunFence
from mloc_prefect.flow.observer import NullObserver
from mloc_prefect.flow.outcome import StageOutcome, Status, WorkflowOutcome, blame
from mloc_prefect.flow.outcome_run import run_for_outcome
from mloc_prefect.flow.reports import run_artifacts
from mloc_prefect.flow.reports.training_report import publish_training
from mloc_prefect.flow.shards.sharding_dispatcher import ShardingDispatcher, ShardScope
from mloc_prefect.flow.stage_runner import RunScope, StageRun, run_stage
from mloc_prefect.prefect_ext.engine import RunIdentity
from mloc_prefect.prefect_ext.run_control import current_reader, watched_for_cancel
from mloc_prefect.prefect_ext.run_facts import ATTEMPT_LABEL, COMMITTED, stopped_starts
from mloc_prefect.prefect_ext.stage_events import StageEventSender
from mloc_prefect.prefect_ext.state_reasons import StateCode, StateReason, with_reason
from mloc_prefect.spec.declared_parameters import bound_values, value_faults
from mloc_prefect.version import __version__

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping
    from uuid import UUID

    from prefect import State
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun

    from mloc_prefect.flow.dispatcher import StageDispatcher
    from mloc_prefect.flow.options import RunOptions
    from mloc_prefect.plan.workflow_plan import StagePlan, WorkflowPlan

_log = logging.getLogger(__name__)

_Blocked = tuple[Status, str]  # the end of a stage that cannot run, and why


async def coordinate(plan: WorkflowPlan, options: RunOptions) -> WorkflowOutcome:
    """Run all stages of `plan` as subflows of the flow run of this context; failures are in the outcome.

    Raises:
        RuntimeError: There is no flow run in this context.
        UsageError: A parameter that the spec declares has no value, or one of another type.
    """
    options = replace(options, params=_bound(plan, options.params))
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.client is None:
        raise RuntimeError("a plan is coordinated inside a flow run")
    run: FlowRun = context.flow_run
    client: PrefectClient = context.client  # type: ignore[assignment]  # async flows have the async client
    async with AsyncExitStack() as stack:
        dispatcher = options.dispatcher or current_dispatcher()
        if dispatcher is None:
            dispatcher = await stack.enter_async_context(local_dispatcher(options.settings))
        return await _Coordinator(plan, options, run, client, dispatcher).run()


def _bound(plan: WorkflowPlan, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the parameters of a run, in their types and with their defaults."""
    for name, (fault, _) in value_faults(plan.parameters, given).items():
        raise UsageError(f"parameter '{name}' {fault}", hint=f"{plan.file} says in params what it takes")
    return bound_values(plan.parameters, given)


def root_identity(plan: WorkflowPlan, options: RunOptions) -> RunIdentity:
    """Return how the workflow run of `plan` shows in Prefect."""
    tags = ("mloc", *((f"mloc-submission:{options.submission_id}",) if options.submission_id else ()))
    return RunIdentity(name=plan.name, tags=tags, labels={"mloc.kind": plan.kind}, shown=options.shown)


class _Coordinator:
    def __init__(
        self, plan: WorkflowPlan, options: RunOptions, run: FlowRun, client: PrefectClient, dispatcher: StageDispatcher
    ) -> None:
        self.plan, self.options, self.run_, self.client = plan, options, run, client
        self.submission = options.submission_id or str(run.id)
        self.task_ids = options.ids(plan, str(run.id))
        stopped = stopped_starts(run.labels)
        shard_scope = ShardScope(dispatcher=dispatcher, settings=options.settings, root=options.root, stopped=stopped)
        self.scope = RunScope(
            options=options,
            dispatcher=ShardingDispatcher(shard_scope),
            observer=options.observer or NullObserver(),
            fence=_fence(client, run),
            run_count=max(run.run_count, 1),
            task_ids=self.task_ids,
            stopped=stopped,
        )
        self.tasks: dict[str, asyncio.Task[StageOutcome]] = {}
        self.stage_runs: dict[str, UUID] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        self.attempts: dict[str, int] = {}

    async def run(self) -> WorkflowOutcome:
        """Run all stages, and publish plan and result."""
        self.scope.observer.run_started(str(self.run_.id), self.plan, self.task_ids)
        published = asyncio.create_task(self._publish_plan())
        # All tasks are created before the first one runs, so that each can wait for any other.
        self.tasks = {s.key: asyncio.create_task(self._stage(s), name=f"stage {s.key}") for s in self.plan.stages}
        try:
            ended = await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        finally:
            await published
        broken = next((e for e in ended if isinstance(e, BaseException)), None)
        if broken is not None:
            raise broken
        tasks = tuple(e for e in ended if isinstance(e, StageOutcome))
        outcome = WorkflowOutcome(
            ok=all(t.ok for t in tasks), flow_run_id=str(self.run_.id), name=self.plan.name, tasks=tasks
        )
        text = await asyncio.to_thread(run_artifacts.result_markdown, outcome, self.seconds)
        await run_artifacts.publish(
            self.client, self.run_.id, run_artifacts.RESULT_KEY, text, f"result of {self.plan.name}"
        )
        return outcome

    async def _stage(self, stage: StagePlan) -> StageOutcome:
        above = [self.tasks[k] for k in stage.upstream]
        upstream = {o.key: o for o in await asyncio.gather(*(asyncio.shield(t) for t in above))} if above else {}
        blocked = await self._external(stage) if all(o.ok for o in upstream.values()) else None
        start = time.monotonic()
        try:
            outcome = await self._subflow(stage, upstream, blocked)
        except asyncio.CancelledError:
            outcome = self._ended(stage, "CANCELLED", "cancelled")
            raise
        finally:
            self.seconds[stage.key] = time.monotonic() - start
        return outcome

    async def _external(self, stage: StagePlan) -> _Blocked | None:
        """Wait for the tasks of other submissions; return why the stage cannot run, or None."""
        if not stage.external:
            return None
        watch = self.options.task_watch
        cancelled = asyncio.ensure_future(watch.cancelled(self.task_ids[stage.key]))
        try:
            for task_id in stage.external:
                ended = asyncio.ensure_future(watch.ended(task_id))
                try:
                    await asyncio.wait({ended, cancelled}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    ended.cancel()
                if not ended.done():
                    return "CANCELLED", "cancelled"
                if (end := await ended) != "DONE":
                    return "FAILED", f"Dependency {task_id} {'failed' if end == 'FAILED' else 'was cancelled'}"
        except MlocError as error:
            return "FAILED", str(error)
        finally:
            cancelled.cancel()
        return None

    async def _subflow(
        self, stage: StagePlan, upstream: dict[str, StageOutcome], blocked: _Blocked | None
    ) -> StageOutcome:
        """Run one stage as a subflow; its state and the returned outcome say the same."""
        above = upstream

        # One parameter only: Prefect's graph query repeats a parent for each parameter that it has itself.
        async def body(upstream: dict[str, Any]) -> StageOutcome:
            del upstream  # for the UI only; the stage runner reads results from their files
            return await self._body(stage, above, blocked)

        flow: Flow[..., Coroutine[Any, Any, StageOutcome]] = copy(_stage_flow(stage.task_type))
        flow.fn = body
        parameters = {"upstream": {k: self.rows[k] for k in upstream}}
        try:
            # If Prefect refuses the report of the end, the work is done all the same.
            state, outcome = await run_for_outcome(
                flow, parameters, self._identity(stage), partial(self._state, stage), report_may_fail=True
            )
        except (httpx.HTTPError, PrefectException, PrefectSignal) as error:
            return self._ended(stage, "FAILED", f"Prefect did not run it: {reason(error)}")
        if outcome is not None:
            return outcome
        assert state is not None  # else there is an outcome
        ended = f"ended as {state.name} before it started: {state.message or ''}"
        return self._ended(stage, "FAILED", ended)

    async def _body(
        self, stage: StagePlan, upstream: dict[str, StageOutcome], blocked: _Blocked | None
    ) -> StageOutcome:
        context = FlowRunContext.get()
        assert context is not None and context.flow_run is not None
        self.stage_runs[stage.key] = context.flow_run.id
        bad = [o for o in upstream.values() if not o.ok]
        if bad:
            return self._not_run(stage, bad)
        if blocked is not None:
            return self._ended(stage, *blocked)
        log = get_run_logger()
        try:
            outcome = await self._run_stage(stage, context.flow_run, log)
        except MlocError as error:
            return self._ended(stage, "FAILED", str(error))
        except Exception as error:  # boundary: a defect in one stage must not end the others
            log.exception("stage %r met an unexpected error", stage.key)
            return self._ended(stage, "FAILED", f"unexpected {type(error).__name__}: {error}")
        self._note(outcome)
        return outcome

    async def _run_stage(self, stage: StagePlan, run: FlowRun, log: Any) -> StageOutcome:
        tags, task_id = self._identity(stage).tags, self.task_ids[stage.key]
        async with (
            run_artifacts.ProgressArtifact(self.client, run.id, stage.name) as progress,
            StageEventSender(self.client, run.id, name=stage.name, tags=tags, task_id=task_id) as events,
        ):
            stage_run = StageRun(
                log=log, on_event=progress.event, events=events, flow_run_id=str(run.id), begun=_begun(run)
            )
            try:
                with watched_for_cancel(run.id, stage_run.cancel.set):
                    outcome = await run_stage(stage, self.scope, stage_run)
            finally:
                self.attempts[stage.key] = events.last_attempt
        await publish_training(self.client, run.id, stage.name, outcome.summary)
        return outcome

    def _state(self, stage: StagePlan, outcome: StageOutcome) -> Any:
        """Return the state that the subflow ends in; it names the last attempt, whose events may arrive after it."""
        attempt = self.attempts.get(stage.key, 0)
        if outcome.ok:
            done: State[Any] = Completed(
                data=self.rows[stage.key], message=f"{COMMITTED}{' before' if outcome.reused else ''}"
            )
            return with_reason(done, StateReason(StateCode.COMMITTED, attempt=attempt))
        kind = Cancelled if outcome.status == "CANCELLED" else Failed
        state: State[Any] = kind(message=outcome.error)
        if outcome.blamed:
            return with_reason(state, StateReason(StateCode.NOT_RUN))
        failed = outcome.status == "FAILED" and attempt
        return with_reason(state, StateReason(StateCode.LAST_ATTEMPT, attempt=attempt)) if failed else state

    def _not_run(self, stage: StagePlan, bad: list[StageOutcome]) -> StageOutcome:
        blamed = tuple(dict.fromkeys(k for o in bad for k in (o.blamed or (o.key,))))
        ends = {k: self.tasks[k].result().status for k in blamed}
        status: Status = "FAILED" if "FAILED" in ends.values() else "CANCELLED"
        return self._ended(stage, status, f"not run: {blame(ends)}", blamed=blamed)

    def _ended(self, stage: StagePlan, status: Status, error: str, *, blamed: tuple[str, ...] = ()) -> StageOutcome:
        outcome = StageOutcome(
            key=stage.key,
            node=stage.node,
            task_id=self.task_ids[stage.key],
            status=status,
            error=error,
            blamed=blamed,
        )
        self._note(outcome)
        return outcome

    def _note(self, outcome: StageOutcome) -> None:
        self.rows[outcome.key] = outcome.to_dict()
        self.scope.observer.stage_ended(outcome.key, outcome)

    def _identity(self, stage: StagePlan) -> RunIdentity:
        task_id = self.task_ids[stage.key]
        labels = {"mloc.task-type": stage.task_type, "mloc.task-id": task_id, "mloc.stage": stage.key}
        return RunIdentity(
            name=stage.name,
            tags=(
                "mloc",
                f"mloc-task:{task_id}",
                f"mloc-submission:{self.submission}",
                f"mloc-type:{stage.task_type}",
                f"mloc-stage:{stage.key}",
            ),
            labels=labels | ({"mloc.model": stage.model} if stage.model else {}),
            key=stage.key,
            after=tuple(self.stage_runs[k] for k in stage.upstream if k in self.stage_runs),
        )

    async def _publish_plan(self) -> None:
        """Publish the plan, and name the workflow run if another engine created it; runs while stages run."""
        text = run_artifacts.plan_markdown(self.plan, self.task_ids)
        await run_artifacts.publish(
            self.client, self.run_.id, run_artifacts.PLAN_KEY, text, f"plan of {self.plan.name}"
        )
        identity = root_identity(self.plan, self.options)
        tags = {*self.run_.tags, *identity.tags, f"mloc-submission:{self.submission}"}
        try:
            if self.run_.name != identity.name or tags != set(self.run_.tags):
                await self.client.update_flow_run(self.run_.id, name=identity.name, tags=sorted(tags))
        except run_artifacts.SHOW_ERRORS as error:  # a missing name must not fail the run
            _log.warning("the workflow run could not be named: %s", error)


@lru_cache(maxsize=64)
def _stage_flow(task_type: str) -> Flow[..., Any]:
    """Return the flow that stages of a type are copies of: to make one takes milliseconds, to copy it none."""

    async def body(upstream: dict[str, Any]) -> Any:
        del upstream

    return Flow(
        fn=body,
        name=f"mloc-{''.join(c if c.isalnum() or c in '-_.' else '-' for c in task_type)}",
        version=__version__,
        validate_parameters=False,
        persist_result=False,
    )


def _begun(run: FlowRun) -> int:
    """Return how many attempts the labels of a stage's run record; a failed attempt writes the number of the next."""
    text = str(run.labels.get(ATTEMPT_LABEL, 1))
    return int(text) - 1 if text.isdigit() else 0


def _fence(client: PrefectClient, run: FlowRun) -> RunFence:
    """Return a fence for a run with a deployment: only that can be started again while its old process still runs."""
    if not run.deployment_id:
        return NoFence()
    reader = current_reader()
    return ApiFence(reader.read_now if reader else partial(client.read_flow_run, run.id), run.run_count)
