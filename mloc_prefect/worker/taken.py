"""Runs that this worker has taken and not begun: others may have given them away meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mloc_prefect.worker.recovery import taken_by

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient


class Taken:
    """Those runs.

    Args:
        name: Id of the worker.
        client: Open client.
        sure: Says of an incarnation of this worker whether nobody can have taken it for dead yet.
    """

    def __init__(self, name: str, client: PrefectClient, sure: Callable[[str], bool]) -> None:
        self._name, self._client, self._sure = name, client, sure
        self._by: dict[UUID, str] = {}

    def add(self, flow_run_id: UUID, incarnation: str) -> None:
        """Note that this worker, as `incarnation`, has taken a run."""
        self._by[flow_run_id] = incarnation

    def forget(self, flow_run_id: UUID) -> None:
        """Forget a run, which has begun or will not; a second time nothing happens."""
        self._by.pop(flow_run_id, None)

    async def holds(self, flow_run_id: UUID) -> bool:
        """Return whether a run is still ours, just before it begins; one that was never noted is not.

        After a pause of this whole process others may have given it to another worker. A run that is being cancelled
        counts as ours: it is ended as cancelled when it is begun.

        Raises:
            httpx.HTTPError: The server does not answer.
        """
        incarnation = self._by.pop(flow_run_id, None)
        if incarnation is not None and self._sure(incarnation):
            return True
        state = (await self._client.read_flow_run(flow_run_id)).state
        if state is None or state.is_cancelling():
            return state is not None
        ours = incarnation is not None and state.message == taken_by(self._name, incarnation)
        return ours and state.is_pending()
