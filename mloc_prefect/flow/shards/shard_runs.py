"""A Prefect run for each shard of a task, wherever it is computed: people follow the shard there, and can cancel it.

An attempt on the pool is another run. These runs are for display: the work does not wait for them, and an error of
theirs is a line in the log.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException

from mloc_prefect.errors import MlocError
from mloc_prefect.flow.outcome import cancelled_error, was_cancelled
from mloc_prefect.flow.reports.run_artifacts import SHOW_ERRORS
from mloc_prefect.prefect_ext.requests import ask
from mloc_prefect.prefect_ext.retry import until_answered
from mloc_prefect.prefect_ext.run_control import end_is_wanted, may_report, watched_for_cancel
from mloc_prefect.prefect_ext.run_facts import COMMITTED, SHARD_FLOW, STOPPED
from mloc_prefect.prefect_ext.state_reasons import StateCode, StateReason
from mloc_prefect.prefect_ext.tracking_tasks import child_task

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from prefect.client.orchestration import PrefectClient

_log = logging.getLogger(__name__)

T = TypeVar("T")
State = tuple[str, str, StateReason | None]  # Prefect's type, a message, and the reason where programs read it

_HURRY_SECONDS, _PATIENT_SECONDS = 5.0, 60.0


class ShardRuns:
    """The shard runs of the stage whose flow run is the current one; without a flow run there are none."""

    def __init__(self) -> None:
        self._context = FlowRunContext.get()
        self._reporters: list[asyncio.Task[None]] = []
        self._flow: UUID | None = None
        self.given_up = False  # set when the other shards are ended because one has failed

    async def show(self, title: str, task_id: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return the result of `work`, shown as a run; cancelling that run cancels the work.

        Args:
            title: Name of the run.
            task_id: Id of the shard's task.
            work: Computes the shard.

        Raises:
            ExecutionError: It was cancelled by its run, see `was_cancelled`.
        """
        task, stopped = asyncio.ensure_future(work()), asyncio.Event()
        ended: asyncio.Future[State] = asyncio.get_running_loop().create_future()

        def cancel() -> None:
            stopped.set()
            task.cancel()

        self._reporters.append(
            asyncio.create_task(self._report_run(title, task_id, ended, cancel), name=f"show {title}")
        )
        try:
            result = await task
        except asyncio.CancelledError:
            ended.set_result(self._interrupted(by_hand=stopped.is_set()))
            own = asyncio.current_task()
            if stopped.is_set() and own is not None and not own.cancelling():
                raise cancelled_error() from None
            raise
        except BaseException as error:  # boundary: the run must have an end, whatever the error; it is raised again
            text = error.message if isinstance(error, MlocError) else f"unexpected {type(error).__name__}: {error}"
            ended.set_result(("CANCELLED" if was_cancelled(error) else "FAILED", text, None))
            raise
        ended.set_result(("COMPLETED", COMMITTED, StateReason(StateCode.COMMITTED)))
        return result

    async def close(self, *, hurried: bool) -> None:
        """Wait until all ends are reported; the end of the stage, which comes next, needs the server, too.

        Args:
            hurried: The stage was cancelled: wait 5 seconds at most.
        """
        try:
            if self._reporters:
                await asyncio.wait(self._reporters, timeout=_HURRY_SECONDS if hurried else _PATIENT_SECONDS)
        finally:
            for reporter in self._reporters:
                reporter.cancel()

    def _interrupted(self, *, by_hand: bool) -> State:
        if self.given_up:
            return "CANCELLED", "given up, as another shard has no result", None
        if by_hand or end_is_wanted():
            return "CANCELLED", "cancelled", None
        return "CRASHED", STOPPED, StateReason(StateCode.WORKER_STOPPED)

    async def _report_run(
        self, title: str, task_id: str, ended: asyncio.Future[State], cancel: Callable[[], None]
    ) -> None:
        """Create the run of a shard, and report its end."""
        context = self._context
        if context is None or context.flow_run is None or context.client is None:
            return
        client: PrefectClient = context.client  # type: ignore[assignment]  # async flows have the async client
        try:
            run = await until_answered(partial(self._make, client, context, title, task_id), title)
            state = run["state"]["type"]
            if state != "RUNNING" and not ended.done():  # of an earlier start of the workflow run, as that left it
                await until_answered(partial(_set, client, run["id"], ("RUNNING", "", None)), title)
                state = "RUNNING"
            with watched_for_cancel(UUID(run["id"]), cancel):
                end = await asyncio.shield(ended)
            if state != end[0] and await until_answered(may_report, title):
                await until_answered(partial(_set, client, run["id"], end), title)
        except SHOW_ERRORS as error:
            _log.warning("shard %s could not be shown: %s", title, error)

    async def _make(self, client: PrefectClient, context: FlowRunContext, title: str, task_id: str) -> Any:
        """Return the run of a shard; there is one, however often the workflow run is started."""
        assert context.flow_run is not None
        if self._flow is None:
            self._flow = await client.create_flow_from_name(SHARD_FLOW)
        parent = await child_task(client, context, task_id)
        body = {
            "flow_id": str(self._flow),
            "name": title,
            "parameters": {"task": task_id},
            "parent_task_run_id": str(parent),
            "state": {"type": "RUNNING", "name": "Running"},
            "tags": ["mloc", f"mloc-attempt:{task_id}"],
            "idempotency_key": f"{context.flow_run.id}/{task_id}",
        }
        # A conflict means that a request whose answer was lost has made it: the next one finds it by its key.
        run = await ask(client, "POST", "/flow_runs/", body) or await ask(client, "POST", "/flow_runs/", body)
        if run is None:
            raise PrefectException(f"the server neither creates nor finds the run of {title}")
        return run


async def _set(client: PrefectClient, run_id: str, state: State) -> None:
    kind, message, reason = state
    body: dict[str, Any] = {"type": kind, "name": kind.capitalize(), "message": message}
    if reason is not None:
        body["state_details"] = reason.as_details()
    body = {"state": body, "force": True}
    await ask(client, "POST", f"/flow_runs/{run_id}/set_state", body)
