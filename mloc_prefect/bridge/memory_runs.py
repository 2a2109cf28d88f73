"""The twins in memory of what the bridge reads from Prefect: flow runs, and events about them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mloc_prefect.bridge.event_sources import EventDelivery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping, Sequence

    from mloc_prefect.bridge.event_sources import RunEvent
    from mloc_prefect.bridge.prefect_runs import RunView


class MemoryRuns:
    """Flow runs in a dictionary, in order of creation.

    Attributes:
        views: The runs by id.
        kept: Stored events of the stage runner.
        asked: Number of requests so far.
    """

    def __init__(self, *views: RunView) -> None:
        self.views: dict[str, RunView] = {view.id: view for view in views}
        self.kept: list[RunEvent] = []
        self.asked = 0

    def put(self, *views: RunView) -> None:
        """Add or replace runs."""
        self.views |= {view.id: view for view in views}

    async def get(self, run_ids: Collection[str]) -> Mapping[str, RunView]:
        """See `RunReader`."""
        self.asked += 1
        return {run_id: self.views[run_id] for run_id in run_ids if run_id in self.views}

    async def of_submissions(self, submission_ids: Collection[str]) -> Sequence[RunView]:
        """See `RunReader`."""
        self.asked += 1
        return [view for view in self.views.values() if view.tags.submission_id in submission_ids]

    async def find_by_ids(self, submission_ids: Collection[str], run_ids: Collection[str] = ()) -> Sequence[RunView]:
        """See `RunReader`; a run with the tags of a submission and of a stage counts as a subflow run."""
        self.asked += 1
        return [
            view
            for view in self.views.values()
            if view.id in {*submission_ids, *run_ids}
            or (view.submission_id in submission_ids and (view.tags.is_workflow_run or view.tags.stage is not None))
        ]

    async def unfinished(self) -> Sequence[RunView]:
        """See `RunReader`."""
        self.asked += 1
        return [view for view in self.views.values() if not view.final]

    async def workflow_runs_since(self, ts: float) -> Sequence[RunView]:
        """See `RunReader`."""
        self.asked += 1
        return [view for view in self.views.values() if view.tags.is_workflow_run and view.created > ts]

    async def kept_events(self, run_ids: Collection[str]) -> Sequence[RunEvent]:
        """See `RunReader`."""
        self.asked += 1
        return [event for event in self.kept if event.run_id in run_ids]


class MemorySource:
    """Events in a queue; the next `batches` yields unacknowledged ones again."""

    def __init__(self) -> None:
        self._entries: dict[int, RunEvent] = {}
        self._last = 0
        self._added = asyncio.Event()

    @property
    def pending(self) -> list[RunEvent]:
        """Events that are not acknowledged."""
        return list(self._entries.values())

    def put(self, *events: RunEvent) -> None:
        """Add events."""
        for event in events:
            self._last += 1
            self._entries[self._last] = event
        self._added.set()

    async def batches(self) -> AsyncIterator[Sequence[EventDelivery]]:
        """See `EventSource`."""
        given = 0
        while True:
            self._added.clear()
            new = {number: event for number, event in self._entries.items() if number > given}
            given = max(new, default=given)
            yield [self._delivery(number, event) for number, event in new.items()]
            await self._added.wait()

    def _delivery(self, number: int, event: RunEvent) -> EventDelivery:
        async def ack() -> None:
            self._entries.pop(number, None)

        return EventDelivery(event, ack)
