"""Counts what workers say of themselves, whichever protocol they speak, for `GET /metrics`. [protocol 1.6]."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from mloc_prefect.bridge.ports import WORKER_EVENTS
from mloc_prefect.errors import StoreError

if TYPE_CHECKING:
    from mloc_prefect.bridge.stores import Stores

_log = logging.getLogger(__name__)

COUNTERS = {
    "REGISTER": "workers_registered",
    "UNREGISTER": "workers_unregistered",
    "HEARTBEAT": "worker_heartbeats",
}
"""Type of a message on `workers.events`, and the sum of the tally that it adds to."""

_AGAIN_SECONDS = 1.0


async def take_census(stores: Stores) -> None:
    """Count until cancelled. What is said while Redis is away is not heard, and so not counted."""
    while True:
        try:
            async with stores.publisher.listen(WORKER_EVENTS) as messages:
                async for _, message in messages:
                    kind = message.get("type")
                    counter = COUNTERS.get(kind.upper()) if isinstance(kind, str) else None
                    if counter is not None:
                        await stores.tasks.add({counter: 1})
        except StoreError as error:
            _log.warning("workers are not counted: %s", error.message)
            await asyncio.sleep(_AGAIN_SECONDS)
