"""Registration of a worker in MLOC's registry: the keys and messages that MLOC dashboards read. [protocol 3.1, 3.2].

Messages have the keys of both generations: the original reads `extra`, the later one `payload`.
"""

from __future__ import annotations

import os
import platform
import socket
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mloc_prefect.store.interfaces import WORKER_EVENTS
from mloc_prefect.store.records import WorkerRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mloc_prefect.cluster.worker_card import WorkerCard
    from mloc_prefect.store.interfaces import Message, WorkerRegistry


class MlocRegistration:
    """Registers one worker and keeps its entry alive.

    Args:
        registry: MLOC's registry.
        ttl: Seconds without a heartbeat after which the entry expires.

    Attributes:
        switched_off: The worker is to take no new work (`POST /workers/ID/elastic`), as of the last beat.
    """

    def __init__(self, registry: WorkerRegistry, ttl: float) -> None:
        self._registry = registry
        self._ttl = ttl
        self._started = _now()
        self._clock = time.monotonic()
        self._registered = False
        self.switched_off = False

    async def beat(self, card: WorkerCard) -> None:
        """Renew the entry; create it when it is missing (the first time, and after the store was emptied).

        Raises:
            StoreError: The registry cannot be reached; the next beat tries again.
        """
        heartbeat = _message("HEARTBEAT", card, metrics={"loadavg": _load(), "uptime_sec": self._uptime()})
        if not (self._registered and await self._touch(card, heartbeat)):
            await self._register(card)
            await self._touch(card, heartbeat)
        found = await self._registry.get(card.id)
        self.switched_off = found is not None and found.elastic_disabled

    async def leave(self, card: WorkerCard) -> None:
        """Remove the worker from the registry."""
        message = _message("UNREGISTER", card, payload={"uptime_sec": self._uptime()})
        await self._registry.remove(card.id, messages=[message])

    async def _touch(self, card: WorkerCard, heartbeat: Message) -> bool:
        return await self._registry.heartbeat(card.id, ttl=self._ttl, at_work=card.at_work, messages=[heartbeat])

    async def _register(self, card: WorkerCard) -> None:
        record = self._record(card)
        messages = [
            _message("REGISTER", card, "STARTING", payload={"env": record.env, "hardware": record.hardware}),
            _message("STATUS", card, "IDLE", extra={}),
        ]
        await self._registry.register(record, ttl=self._ttl, messages=messages)
        self._registered = True

    def _uptime(self) -> float:
        return round(time.monotonic() - self._clock, 3)

    def _record(self, card: WorkerCard) -> WorkerRecord:
        return WorkerRecord(
            worker_id=card.id,
            status="IDLE",
            started_at=self._started,
            pid=os.getpid(),
            env={"python": platform.python_version(), "platform": platform.platform(), "pool": card.pool},
            hardware=hardware(card),
            tags=card.inventory.tags,
            last_seen=_now(),
            cached_models=card.models,
            protocol="ours",
        )


def hardware(card: WorkerCard) -> dict[str, Any]:
    """Return the inventory of a card in the form of protocol 3.2."""
    gpus = [
        {
            "index": gpu.index,
            "name": gpu.type,
            "uuid": gpu.uuid or f"{card.id}-{gpu.index}",
            "memory_total_bytes": gpu.memory_bytes,
        }
        for gpu in card.inventory.gpus
    ]
    return {
        "cpu": {"logical_cores": card.inventory.cpus, "model": platform.processor() or platform.machine()},
        "memory": {"total_bytes": card.inventory.memory_bytes},
        "gpu": {"driver_version": None, "cuda_version": None, "gpus": gpus},
        "network": {"ip": _address()},
    }


def _message(kind: str, card: WorkerCard, status: str | None = None, **more: Mapping[str, Any]) -> Message:
    base: dict[str, Any] = {"type": kind, "worker_id": card.id, "status": status, "ts": _now()}
    return WORKER_EVENTS, base | {"tags": list(card.inventory.tags), "metrics": {}, "payload": {}} | more


def _address() -> str | None:
    """Return the address with which this machine would speak to others; nothing is sent to find out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # of no machine: kept for documentation (RFC 5737)
        except OSError:
            return None
        return str(sock.getsockname()[0])


def _load() -> dict[str, float]:
    return dict(zip(("1m", "5m", "15m"), (round(value, 2) for value in os.getloadavg()), strict=True))


def _now() -> str:
    return datetime.now(UTC).isoformat()
