"""One set of ports, real or in memory, to hand to endpoint and bridge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mloc_prefect.bridge.memory import MemoryLeases, MemoryPublisher, MemoryWorkerRegistry
from mloc_prefect.bridge.memory_tasks import MemoryJournal, MemoryTaskStore
from mloc_prefect.errors import MissingExtraError

if TYPE_CHECKING:
    from pydantic import SecretStr

    from mloc_prefect.bridge.ports import Journal, Leases, Publisher, TaskStore, WorkerRegistry


class Backing(Protocol):
    """What lies behind a set of stores."""

    async def check(self) -> None:
        """Ask for a sign of life.

        Raises:
            StoreError: There is none.
        """
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """All ports on one store.

    Attributes:
        tasks: Submissions and records.
        workers: Worker registry.
        publisher: Messages.
        journal: Accepted submissions and cancellations that are not yet done.
        leases: Who is active.
        backing: Connections.
    """

    tasks: TaskStore
    workers: WorkerRegistry
    publisher: Publisher
    journal: Journal
    leases: Leases
    backing: Backing

    async def check(self) -> None:
        """Ask for a sign of life; StoreError when there is none."""
        await self.backing.check()

    async def close(self) -> None:
        """Close all connections."""
        await self.backing.close()


class MemoryBacking:
    """Nothing lies behind."""

    async def check(self) -> None:
        """Always alive."""

    async def close(self) -> None:
        """Nothing to close."""


def memory_stores() -> Stores:
    """Return the twins, which share one publisher; for tests and for one process."""
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
    """Return the real ones on a Redis (>= 6.2) or Valkey database; connections are made on first use.

    All of them belong to one event loop, and are closed with `close`.

    Raises:
        StoreError: The URL cannot be read.
        MissingExtraError: The client library is not installed.
    """
    try:
        from mloc_prefect.bridge.redis_client import RedisClient
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"the package {error.name} is not installed", hint="pip install 'mloc-prefect[redis]'"
        ) from error
    from mloc_prefect.bridge.journal import RedisJournal
    from mloc_prefect.bridge.redis_leases import RedisLeases
    from mloc_prefect.bridge.redis_publish import RedisPublisher
    from mloc_prefect.bridge.redis_tasks import RedisTaskStore
    from mloc_prefect.bridge.redis_workers import RedisWorkerRegistry

    client = RedisClient(url)
    return Stores(
        tasks=RedisTaskStore(client),
        workers=RedisWorkerRegistry(client),
        publisher=RedisPublisher(client),
        journal=RedisJournal(client),
        leases=RedisLeases(client),
        backing=client,
    )
