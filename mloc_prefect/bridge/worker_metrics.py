"""Counts what workers of both protocols report, for `GET /metrics`. [protocol 1.6]."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from mloc_prefect.errors import StoreError
from mloc_prefect.store.interfaces import WORKER_EVENTS

if TYPE_CHECKING:
    from mloc_prefect.store.backends import Stores

_log = logging.getLogger(__name__)

COUNTERS = {
    "REGISTER": "workers_registered",
    "UNREGISTER": "workers_unregistered",
    "HEARTBEAT": "worker_heartbeats",
}
"""Type of a message on `workers.events` -> the counter that it adds to."""

RETRY_SECONDS = 1.0


async def count_worker_events(stores: Stores, *, retry: float = RETRY_SECONDS) -> None:
    """Count until cancelled; messages that are sent while Redis cannot be reached are missed and not counted."""
    while True:
        try:
            async with stores.publisher.listen(WORKER_EVENTS) as messages:
                async for _, message in messages:
                    kind = message.get("type")
                    counter = COUNTERS.get(kind.upper()) if isinstance(kind, str) else None
                    if counter is not None:
                        await stores.tasks.add({counter: 1})
        except StoreError as error:
            _log.warning("could not count worker events, will retry: %s", error.message)
            await asyncio.sleep(retry)
