"""Fencing: a run that was given up and started again must not commit what its old process still computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from prefect.exceptions import ObjectNotFound

from mloc_prefect.errors import ExecutionError
from mloc_prefect.orchestrate.outage import until_answered

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient


class StaleRunError(ExecutionError):
    """This process belongs to a start of the run that is over."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=False)


class RunFence(Protocol):
    """Says whether this start of the root run is still the current one."""

    async def check(self) -> None:
        """Return when it is; wait while nobody can tell, as nothing may be committed without an answer.

        Raises:
            StaleRunError: It is not.
        """


class NoFence:
    """For runs that nobody can start again."""

    async def check(self) -> None:
        """See `RunFence`."""


class ApiFence:
    """Asks the Prefect API for the run count of the root run.

    Args:
        client: Open client.
        flow_run_id: The root run.
        run_count: Its count when this process started it.
    """

    def __init__(self, client: PrefectClient, flow_run_id: UUID, run_count: int) -> None:
        self._client = client
        self._flow_run_id = flow_run_id
        self._run_count = run_count

    async def check(self) -> None:
        """See `RunFence`."""
        try:
            run = await until_answered(lambda: self._client.read_flow_run(self._flow_run_id), "a result")
        except ObjectNotFound:
            raise StaleRunError("the run was deleted") from None
        if run.run_count != self._run_count:
            raise StaleRunError(f"the run was started again (start {run.run_count}, this is {self._run_count})")
        if run.state is not None and run.state.is_final():
            raise StaleRunError(f"the run has already ended ({run.state.name})")
        if run.state is not None and run.state.is_scheduled():  # its count grows only when the next start begins
            raise StaleRunError("the run was given up and waits for its next start")
