"""Fencing: keeps the process of an earlier start of a run from committing its results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from prefect.exceptions import ObjectNotFound

from mloc_prefect.errors import ExecutionError
from mloc_prefect.flow.outcome import cancelled_error
from mloc_prefect.prefect_ext.retry import until_answered

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prefect.client.schemas.objects import FlowRun


class StaleRunError(ExecutionError):
    """This process belongs to a start of the run that is over."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=False)


class RunFence(Protocol):
    """Checks whether this start of the workflow run is still the current one."""

    async def check(self) -> None:
        """Return when it is; wait while the server does not answer, as nothing may be committed without an answer.

        Raises:
            StaleRunError: It is not.
        """


class NoFence:
    """For runs that cannot be started again."""

    async def check(self) -> None:
        """See `RunFence`."""


class CancelFence:
    """Also refuses the result of a task that was cancelled: the answer to the cancellation said so already.

    Args:
        fence: What is checked first.
        is_cancelled: Returns whether the task is cancelled now.
    """

    def __init__(self, fence: RunFence, is_cancelled: Callable[[], Awaitable[bool]]) -> None:
        self._fence, self._is_cancelled = fence, is_cancelled

    async def check(self) -> None:
        """See `RunFence`.

        Raises:
            ExecutionError: The task is cancelled, see `was_cancelled`.
        """
        await self._fence.check()
        if await self._is_cancelled():
            raise cancelled_error()


class ApiFence:
    """Reads the run count of the workflow run from the Prefect API.

    Args:
        read: Reads the workflow run.
        run_count: Its run count when this process started it.
    """

    def __init__(self, read: Callable[[], Awaitable[FlowRun]], run_count: int) -> None:
        self._read, self._run_count = read, run_count

    async def check(self) -> None:
        """See `RunFence`."""
        try:
            run = await until_answered(self._read, "a result")
        except ObjectNotFound:
            raise StaleRunError("the run was deleted") from None
        if run.run_count != self._run_count:
            raise StaleRunError(f"the run was started again (start {run.run_count}, this is {self._run_count})")
        if run.state is not None and run.state.is_final():
            raise StaleRunError(f"the run has already ended ({run.state.name})")
        # Its count grows only when the next start begins; until then it waits for a worker, or one has claimed it.
        if run.state is not None and (run.state.is_scheduled() or run.state.is_pending()):
            raise StaleRunError("the run was given up and waits for its next start")
