"""A run in Prefect for each shard of a task, wherever it is computed: there people see how it goes, and can cancel it.

An attempt on the pool is a run of its own beside it. All this is only shown: it is made beside the work, which does not
wait for it, and an error of it is a line in the log.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from prefect.context import FlowRunContext

from mloc_prefect.errors import ExecutionError, MlocError
from mloc_prefect.execution.protocol import ExecutionFailure
from mloc_prefect.orchestrate.api import ask
from mloc_prefect.orchestrate.cancelling import on_board
from mloc_prefect.orchestrate.engine import child_task, end_is_wanted, may_report
from mloc_prefect.orchestrate.lost import STOPPED
from mloc_prefect.orchestrate.outage import until_answered
from mloc_prefect.orchestrate.outcome import was_cancelled
from mloc_prefect.orchestrate.report import SHOW_ERRORS
from mloc_prefect.orchestrate.tell import COMMITTED

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from prefect.client.orchestration import PrefectClient

_log = logging.getLogger(__name__)

T = TypeVar("T")
State = tuple[str, str]  # Prefect's type and a message

SHARD_FLOW = "mloc-shard"
"""Name of the flow of all shards."""

_HURRY_SECONDS, _PATIENT_SECONDS = 5.0, 60.0


class ShardRuns:
    """The runs of the shards of the stage whose flow run is that of this context; without one nothing is shown."""

    def __init__(self) -> None:
        self._context = FlowRunContext.get()
        self._keepers: list[asyncio.Task[None]] = []
        self._flow: UUID | None = None
        self.given_up = False  # set when the others are ended because one has failed

    async def show(self, title: str, task_id: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what `work` does, and show it as a run; somebody who cancels that run cancels the work.

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

        self._keepers.append(asyncio.create_task(self._keep(title, task_id, ended, cancel), name=f"show {title}"))
        try:
            result = await task
        except asyncio.CancelledError:
            ended.set_result(self._interrupted(by_hand=stopped.is_set()))
            own = asyncio.current_task()
            if stopped.is_set() and own is not None and not own.cancelling():
                failure = ExecutionFailure("cancelled", kind="cancelled")
                raise ExecutionError("cancelled", retryable=False, failure=failure) from None
            raise
        except BaseException as error:  # boundary: the run must have an end, whatever it is; it is raised on
            words = error.message if isinstance(error, MlocError) else f"unexpected {type(error).__name__}: {error}"
            ended.set_result(("CANCELLED" if was_cancelled(error) else "FAILED", words))
            raise
        ended.set_result(("COMPLETED", COMMITTED))
        return result

    async def close(self, *, hurried: bool) -> None:
        """Wait until all ends are told; the end of the stage, which comes next, needs the server too.

        Args:
            hurried: The stage was cancelled: wait a moment only.
        """
        try:
            if self._keepers:
                await asyncio.wait(self._keepers, timeout=_HURRY_SECONDS if hurried else _PATIENT_SECONDS)
        finally:
            for keeper in self._keepers:
                keeper.cancel()

    def _interrupted(self, *, by_hand: bool) -> State:
        if self.given_up:
            return "CANCELLED", "given up, as another shard has no result"
        return ("CANCELLED", "cancelled") if by_hand or end_is_wanted() else ("CRASHED", STOPPED)

    async def _keep(self, title: str, task_id: str, ended: asyncio.Future[State], cancel: Callable[[], None]) -> None:
        """Make the run of a shard, and tell its end."""
        context = self._context
        if context is None or context.flow_run is None or context.client is None:
            return
        client: PrefectClient = context.client  # type: ignore[assignment]  # async flows have the async client
        try:
            run = await until_answered(partial(self._make, client, context, title, task_id), title)
            state = run["state"]["type"]
            if state != "RUNNING" and not ended.done():  # of an earlier start of the root run, as that has left it
                await until_answered(partial(_set, client, run["id"], ("RUNNING", "")), title)
                state = "RUNNING"
            with on_board(UUID(run["id"]), cancel):
                end = await asyncio.shield(ended)
            if state != end[0] and await until_answered(may_report, title):
                await until_answered(partial(_set, client, run["id"], end), title)
        except SHOW_ERRORS as error:
            _log.warning("shard %s could not be shown: %s", title, error)

    async def _make(self, client: PrefectClient, context: FlowRunContext, title: str, task_id: str) -> Any:
        """Return the run of a shard; it has one, however often its root run is started."""
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
        return await ask(client, "POST", "/flow_runs/", body)


async def _set(client: PrefectClient, run_id: str, state: State) -> None:
    body = {"state": {"type": state[0], "name": state[0].capitalize(), "message": state[1]}, "force": True}
    await ask(client, "POST", f"/flow_runs/{run_id}/set_state", body)
