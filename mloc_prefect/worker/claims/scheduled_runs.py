"""Scheduled runs of chosen queues, read from the API by the clock of the server."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import httpx
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.exceptions import PrefectHTTPStatusError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect.client.orchestration import PrefectClient

_MARGIN = 2.0  # the server's clock is read to the second


class ServerClock:
    """Time of the server, from its answers: a worker whose own clock is wrong must not miss runs that are due."""

    def __init__(self) -> None:
        self._offset: float | None = None

    def learn(self, response: httpx.Response) -> None:
        """Take the time from an answer that has just come."""
        try:
            self._offset = parsedate_to_datetime(response.headers["date"]).timestamp() - time.monotonic()
        except (KeyError, ValueError):
            return

    def now(self) -> datetime:
        """Return the server's time as well as it is known; ours before its first answer."""
        seconds = time.time() if self._offset is None else time.monotonic() + self._offset
        return datetime.fromtimestamp(seconds, UTC)


class ScheduledRuns:
    """Reads what is scheduled on one pool.

    Args:
        pool: Name of the pool.
    """

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._clock = ServerClock()

    async def read(
        self, client: PrefectClient, queues: Sequence[str], *, ahead: float = 0.0, limit: int = 200
    ) -> list[WorkerFlowRunResponse]:
        """Return runs that are due, in the order in which Prefect serves them; limits of pool and queues are kept.

        Args:
            client: Open client.
            queues: Names of queues; none gives no runs.
            ahead: Seconds that they may still be from being due.
            limit: Most runs.

        Raises:
            httpx.HTTPError: No answer.
        """
        if not queues:
            return []
        route: Any = f"/work_pools/{self._pool}/get_scheduled_flow_runs"
        before = self._clock.now() + timedelta(seconds=max(ahead, _MARGIN))
        body = {"work_queue_names": list(queues), "scheduled_before": before.isoformat(), "limit": limit}
        try:
            response = await client.request("POST", route, json=body)
        except PrefectHTTPStatusError as error:
            if error.response.status_code == httpx.codes.NOT_FOUND:  # a queue, or the pool, was deleted
                return []
            raise
        self._clock.learn(response)
        return WorkerFlowRunResponse.model_validate_list(response.json())
