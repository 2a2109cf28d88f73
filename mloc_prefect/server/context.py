"""What the routes work with, in one object that the application carries."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

if TYPE_CHECKING:
    from pathlib import Path

    from mloc_prefect.bridge.stores import Stores
    from mloc_prefect.server.counters import Counters
    from mloc_prefect.server.feed import Feed
    from mloc_prefect.server.fleet import Fleet
    from mloc_prefect.server.masking import Masker
    from mloc_prefect.settings import MlocSettings


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Collaborators of the routes.

    Attributes:
        settings: Settings in force.
        stores: Records, registry, messages.
        fleet: Live workers, as of a moment ago.
        feed: Messages of the channels, for `GET /api/v1/events`.
        masker: Takes secrets out of records.
        counters: Requests that were answered.
        stopping: Set when the process was told to end: streams then end too.
    """

    settings: MlocSettings
    stores: Stores
    fleet: Fleet
    feed: Feed
    masker: Masker
    counters: Counters
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def results(self) -> Path:
        """Absolute root of task results."""
        return self.settings.results_root


async def endpoint_of(request: Request) -> Endpoint:
    """Return the endpoint that serves `request`; async, as the framework runs other functions in threads."""
    found: Endpoint = request.app.state.endpoint
    return found


Here = Annotated[Endpoint, Depends(endpoint_of)]
"""The parameter by which routes get their endpoint."""
