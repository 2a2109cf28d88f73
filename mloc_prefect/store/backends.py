"""Opens all stores on one backend, in Redis or in memory, for the endpoint and the bridge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mloc_prefect.errors import MissingExtraError
from mloc_prefect.store.memory.journal import MemoryJournal
from mloc_prefect.store.memory.publisher import MemoryPublisher
from mloc_prefect.store.memory.service_leases import MemoryLeases
from mloc_prefect.store.memory.task_store import MemoryTaskStore
from mloc_prefect.store.memory.worker_registry import MemoryWorkerRegistry

if TYPE_CHECKING:
    from pydantic import SecretStr

    from mloc_prefect.store.interfaces import Journal, Leases, Publisher, TaskStore, WorkerRegistry


class Backing(Protocol):
    """The connections of a set of stores."""

    async def check(self) -> None:
        """Check that the store answers.

        Raises:
            StoreError: It does not.
        """
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """All stores on one backend.

    Attributes:
        tasks: Submissions and records.
        workers: Worker registry.
        publisher: Messages.
        journal: Accepted submissions and cancellations that are not yet handled.
        leases: Leases, e.g. of the active bridge.
        backing: Connections.
    """

    tasks: TaskStore
    workers: WorkerRegistry
    publisher: Publisher
    journal: Journal
    leases: Leases
    backing: Backing

    async def check(self) -> None:
        """Check that the store answers; StoreError when it does not."""
        await self.backing.check()

    async def close(self) -> None:
        """Close all connections."""
        await self.backing.close()


class MemoryBacking:
    """The connections of stores in memory: none."""

    async def check(self) -> None:
        """Always alive."""

    async def close(self) -> None:
        """Nothing to close."""


def memory_stores() -> Stores:
    """Return the twins in memory, with one shared publisher; for tests and for one process."""
    publisher, journal, leases = MemoryPublisher(), MemoryJournal(), MemoryLeases()
    return Stores(
        tasks=MemoryTaskStore(publisher, journal, leases),
        workers=MemoryWorkerRegistry(publisher=publisher),
        publisher=publisher,
        journal=journal,
        leases=leases,
        backing=MemoryBacking(),
    )


def open_stores(url: str | SecretStr) -> Stores:
    """Return the stores on a Redis (>= 6.2) or Valkey database; connections are made on first use.

    They belong to one event loop and are closed with `close`.

    Raises:
        StoreError: The URL cannot be read.
        MissingExtraError: The client library is not installed.
    """
    try:
        from mloc_prefect.store.redis.redis_client import RedisClient
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"the package {error.name} is not installed", hint="pip install 'mloc-prefect[redis]'"
        ) from error
    from mloc_prefect.store.redis.journal import RedisJournal
    from mloc_prefect.store.redis.publisher import RedisPublisher
    from mloc_prefect.store.redis.service_leases import RedisLeases
    from mloc_prefect.store.redis.task_store import RedisTaskStore
    from mloc_prefect.store.redis.worker_registry import RedisWorkerRegistry

    client = RedisClient(url)
    return Stores(
        tasks=RedisTaskStore(client),
        workers=RedisWorkerRegistry(client),
        publisher=RedisPublisher(client),
        journal=RedisJournal(client),
        leases=RedisLeases(client),
        backing=client,
    )
