"""What workers say is counted, by the bridge, for all endpoints."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.bridge.worker_metrics import count_worker_events
from mloc_prefect.cluster.mloc_registration import MlocRegistration
from mloc_prefect.errors import StoreError
from mloc_prefect.store.backends import memory_stores
from mloc_prefect.store.interfaces import TASK_EVENTS, WORKER_EVENTS
from tests.support.cards import card

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mloc_prefect.store.backends import Stores


async def settle() -> None:
    """Let everything happen that waits for nothing."""
    for _ in range(100):
        await asyncio.sleep(0)


@asynccontextmanager
async def counting(stores: Stores) -> AsyncIterator[None]:
    task = asyncio.create_task(count_worker_events(stores, retry=0.0))
    await settle()
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_workers_of_both_protocols_are_counted() -> None:
    stores = memory_stores()
    async with counting(stores):
        ours = MlocRegistration(stores.workers, ttl=60)
        for _ in range(3):
            await ours.beat(card("w-1"))
        await stores.publisher.publish(WORKER_EVENTS, {"type": "REGISTER", "worker_id": "w-a", "status": "STARTING"})
        await stores.publisher.publish(WORKER_EVENTS, {"type": "UNREGISTER", "worker_id": "w-a"})
        for message in ({"type": "STATUS"}, {"worker_id": "w-a"}, {"type": None}):
            await stores.publisher.publish(WORKER_EVENTS, message)
        await stores.publisher.publish(TASK_EVENTS, {"type": "REGISTER"})
        await settle()
    assert await stores.tasks.tally() == {"workers_registered": 2, "worker_heartbeats": 3, "workers_unregistered": 1}


async def test_a_store_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    stores = memory_stores()
    answers = [StoreError("away")]
    add = stores.tasks.add

    async def sometimes(sums: Any) -> None:
        if answers:
            raise answers.pop()
        await add(sums)

    monkeypatch.setattr(stores.tasks, "add", sometimes)
    async with counting(stores):
        for _ in range(2):
            await stores.publisher.publish(WORKER_EVENTS, {"type": "HEARTBEAT", "worker_id": "w-a"})
            await settle()
    assert await stores.tasks.tally() == {"worker_heartbeats": 1}
