"""What routes get: one object with stores and settings, which the application carries."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from mloc_prefect.server.responses import ErrorResponse
from mloc_prefect.store.records import TaskRecord, WorkerRecord

if TYPE_CHECKING:
    from pathlib import Path

    from mloc_prefect.server.counters import Counters
    from mloc_prefect.server.streams.message_feed import MessageFeed
    from mloc_prefect.server.worker_cache import WorkerCache
    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.store.backends import Stores


@dataclass(frozen=True, kw_only=True)
class EndpointContext:
    """Collaborators of the routes.

    Attributes:
        settings: The settings.
        stores: Records, registry, messages.
        fleet: Live workers, at most a second old.
        feed: Messages of the channels, for `GET /api/v1/events`.
        counters: Counts of answered requests.
        stopping: Set when the process is stopping: streams then end.
    """

    settings: MlocSettings
    stores: Stores
    fleet: WorkerCache
    feed: MessageFeed
    counters: Counters
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def results(self) -> Path:
        """Absolute root of task results."""
        return self.settings.results_root


async def endpoint_of(request: Request) -> EndpointContext:
    """Return the context of the endpoint; async, because FastAPI runs sync functions in threads."""
    found: EndpointContext = request.app.state.endpoint
    return found


Here = Annotated[EndpointContext, Depends(endpoint_of)]
"""The parameter through which routes get the context."""


async def _task_of(task_id: str, endpoint: Here) -> TaskRecord:
    """Return the record of the task that the path names.

    Raises:
        ErrorResponse: 404 if there is none.
        StoreError: Redis cannot be reached.
    """
    record = await endpoint.stores.tasks.get(task_id)
    if record is None:
        raise ErrorResponse(404, "task not found")
    return record


async def _worker_of(worker_id: str, endpoint: Here) -> WorkerRecord:
    """Return the record of the worker that the path names.

    Raises:
        ErrorResponse: 404 if there is none.
        StoreError: Redis cannot be reached.
    """
    worker = await endpoint.stores.workers.get(worker_id)
    if worker is None:
        raise ErrorResponse(404, "worker not found")
    return worker


NamedTask = Annotated[TaskRecord, Depends(_task_of)]
"""The parameter through which routes get the task that their path names."""

NamedWorker = Annotated[WorkerRecord, Depends(_worker_of)]
"""The parameter through which routes get the worker that their path names."""
