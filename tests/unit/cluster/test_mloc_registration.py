"""A worker of ours in MLOC's registry: what dashboards of either generation read of it. [protocol 3.1, 3.2]."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.cluster.mloc_registration import MlocRegistration
from mloc_prefect.cluster.worker_card import Busy
from mloc_prefect.store.backends import memory_stores
from tests.support.cards import card

if TYPE_CHECKING:
    from mloc_prefect.store.backends import Stores

FIRST: dict[str, set[str]] = {
    "REGISTER": {"status", "tags"},
    "STATUS": {"status", "extra"},
    "HEARTBEAT": {"metrics"},
    "UNREGISTER": set(),
}
"""Keys of the original beside `type`, `worker_id` and `ts`; the later generation has those of `LATER` in each."""

LATER = {"status", "tags", "metrics", "payload"}


@pytest.fixture
def stores() -> Stores:
    return memory_stores()


def sent(stores: Stores) -> list[dict[str, Any]]:
    """Return what was published on `workers.events`, and nothing else was."""
    found = stores.publisher.sent  # type: ignore[attr-defined]
    assert {channel for channel, _ in found} == {"workers.events"}
    return [dict(message) for _, message in found]


async def test_the_messages_of_a_worker_have_the_keys_of_both_generations(stores: Stores) -> None:
    worker, registration = card("w-1"), MlocRegistration(stores.workers, ttl=60)
    await registration.beat(worker)
    await registration.beat(worker)
    await registration.leave(worker)
    messages = sent(stores)
    assert [m["type"] for m in messages] == ["REGISTER", "STATUS", "HEARTBEAT", "HEARTBEAT", "UNREGISTER"]
    for message in messages:
        assert message.keys() >= {"type", "worker_id", "ts"} | FIRST[message["type"]] | LATER, message
        assert message["worker_id"] == "w-1"
    register, status, heartbeat, *_ = messages
    assert (register["status"], status["status"], status["extra"], status["payload"]) == ("STARTING", "IDLE", {}, {})
    assert register["payload"]["hardware"]["cpu"]["logical_cores"] == worker.inventory.cpus
    ip = register["payload"]["hardware"]["network"]["ip"]
    assert ip is None or not ip_address(ip).is_unspecified
    assert set(heartbeat["metrics"]["loadavg"]) == {"1m", "5m", "15m"}
    assert await stores.workers.list() == []


async def test_the_entry_of_our_worker(stores: Stores) -> None:
    """What differs from the entry of an MLOC worker: see docs/compatibility.md."""
    await MlocRegistration(stores.workers, ttl=0.001).beat(card("w-1"))
    (found,) = await stores.workers.list()
    assert (found.status, found.protocol) == ("IDLE", "ours")
    await asyncio.sleep(0.01)
    assert (await stores.workers.list())[0].stale, "the heartbeat lives as long as the setting says"
    assert found.hardware["gpu"] == {"driver_version": None, "cuda_version": None, "gpus": []}
    heartbeat = next(m for m in sent(stores) if m["type"] == "HEARTBEAT")
    assert set(heartbeat["metrics"]) == {"loadavg", "uptime_sec"}


async def test_a_worker_comes_back_into_a_registry_that_was_emptied(stores: Stores) -> None:
    worker, registration = card("w-1"), MlocRegistration(stores.workers, ttl=60)
    await registration.beat(worker)
    await stores.workers.remove("w-1")
    await registration.beat(worker)
    (found,) = await stores.workers.list()
    assert (found.worker_id, found.status, found.stale, found.protocol) == ("w-1", "IDLE", False, "ours")
    assert [m["type"] for m in sent(stores)].count("REGISTER") == 2


async def test_what_it_holds_loads_and_runs_is_as_of_the_last_beat(stores: Stores) -> None:
    registration = MlocRegistration(stores.workers, ttl=60)
    await registration.beat(card("w-1"))
    await registration.beat(card("w-1", models=("m",), leases=(Busy(holder="task", devices=("gpu:0",)),), runs=("r",)))
    (found,) = await stores.workers.list()
    assert found.at_work == {"leases": [{"holder": "task", "devices": ["gpu:0"]}], "models": ["m"], "runs": ["r"]}
    assert found.cached_models == ("m",)


async def test_it_hears_that_it_was_switched_off_and_on_again(stores: Stores) -> None:
    registration, heard = MlocRegistration(stores.workers, ttl=60), []
    for enabled in (True, False, True):
        await registration.beat(card("w-1"))
        await stores.workers.set_elastic("w-1", enabled=enabled)
        await registration.beat(card("w-1"))
        heard.append(registration.switched_off)
    assert heard == [False, True, False]
