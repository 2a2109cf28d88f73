"""Where workers tell each other what they have: a Prefect Variable for each, so that it works without Redis.

Nobody compares clocks of different machines: a worker lives as long as its `beat` grows, by the clock of who looks.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

import httpx

from mloc_prefect.orchestrate.api import ask
from mloc_prefect.worker.card import WorkerCard
from mloc_prefect.worker.identity import slug

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect.client.orchestration import PrefectClient

_log = logging.getLogger(__name__)

_CARD, _LOCK = "mloc_worker_", "mloc_reaped_"
_PAGE = 200


class Directory(Protocol):
    """Cards of all workers, and locks that exactly one of them gets."""

    async def publish(self, card: WorkerCard) -> None:
        """Put a worker's card there, or renew it."""

    async def remove(self, worker_id: str) -> None:
        """Take a worker's card away; nothing happens when there is none."""

    async def card(self, worker_id: str) -> WorkerCard | None:
        """Return one worker's card, or None when there is none."""

    async def read(self) -> Sequence[WorkerCard]:
        """Return all cards, in order of ids."""

    async def lock(self, name: str, holder: str) -> bool:
        """Take the lock `name` for ever; returns False when it was taken before."""

    async def locked(self, name: str) -> bool:
        """Return whether anybody took the lock `name`."""

    async def forget_locks(self, older: float) -> None:
        """Forget all locks that were taken more than `older` seconds ago (coarsely: clocks may differ)."""

    async def unlock(self, name: str) -> None:
        """Forget a lock."""


class MemoryDirectory:
    """A directory for one process: the in-memory twin."""

    def __init__(self) -> None:
        self._cards: dict[str, str] = {}
        self._locks: dict[str, str] = {}

    async def publish(self, card: WorkerCard) -> None:
        """See `Directory`."""
        self._cards[card.id] = card.to_json()

    async def remove(self, worker_id: str) -> None:
        """See `Directory`."""
        self._cards.pop(worker_id, None)

    async def card(self, worker_id: str) -> WorkerCard | None:
        """See `Directory`."""
        text = self._cards.get(worker_id)
        return None if text is None else WorkerCard.from_json(text)

    async def read(self) -> Sequence[WorkerCard]:
        """See `Directory`."""
        return [WorkerCard.from_json(text) for _, text in sorted(self._cards.items())]

    async def lock(self, name: str, holder: str) -> bool:
        """See `Directory`."""
        if slug(name) in self._locks:
            return False
        self._locks[slug(name)] = holder
        return True

    async def locked(self, name: str) -> bool:
        """See `Directory`."""
        return slug(name) in self._locks

    async def forget_locks(self, older: float) -> None:
        """See `Directory`; these go with the process."""

    async def unlock(self, name: str) -> None:
        """See `Directory`."""
        self._locks.pop(slug(name), None)


class VariableDirectory:
    """A directory in Prefect Variables `mloc_worker_<slug>`.

    Args:
        client: Open client. Errors of the connection (`httpx.HTTPError`) reach the caller.
    """

    def __init__(self, client: PrefectClient) -> None:
        self._client = client

    async def publish(self, card: WorkerCard) -> None:
        """See `Directory`."""
        name, value = _CARD + slug(card.id), card.to_json()
        if await ask(self._client, "PATCH", f"/variables/name/{name}", {"value": value}) is None:
            await ask(self._client, "POST", "/variables/", {"name": name, "value": value, "tags": ["mloc"]})

    async def remove(self, worker_id: str) -> None:
        """See `Directory`."""
        await ask(self._client, "DELETE", f"/variables/name/{_CARD}{slug(worker_id)}")

    async def card(self, worker_id: str) -> WorkerCard | None:
        """See `Directory`."""
        variable = await ask(self._client, "GET", f"/variables/name/{_CARD}{slug(worker_id)}")
        return None if variable is None else WorkerCard.from_json(str(variable["value"]))

    async def read(self) -> Sequence[WorkerCard]:
        """See `Directory`."""
        return [card for card, _ in await self.read_dated()]

    async def read_dated(self) -> Sequence[tuple[WorkerCard, str]]:
        """Return all cards, in order of ids, each with when it was renewed last (ISO 8601, by the server's clock)."""
        found = []
        for variable in await self._all(_CARD):
            try:
                found.append((WorkerCard.from_json(str(variable["value"])), str(variable["updated"])))
            except ValueError as error:
                _log.warning("Prefect Variable %s is %s", variable["name"], error)
        return sorted(found, key=lambda dated: dated[0].id)

    async def lock(self, name: str, holder: str) -> bool:
        """See `Directory`."""
        body = {"name": _LOCK + slug(name), "value": holder, "tags": ["mloc"]}
        return await ask(self._client, "POST", "/variables/", body) is not None

    async def locked(self, name: str) -> bool:
        """See `Directory`."""
        return await ask(self._client, "GET", f"/variables/name/{_LOCK}{slug(name)}") is not None

    async def forget_locks(self, older: float) -> None:
        """See `Directory`."""
        oldest = datetime.now(UTC) - timedelta(seconds=older)
        for variable in await self._all(_LOCK):
            if datetime.fromisoformat(variable["created"]) < oldest:
                await ask(self._client, "DELETE", f"/variables/name/{variable['name']}")

    async def unlock(self, name: str) -> None:
        """See `Directory`."""
        await ask(self._client, "DELETE", f"/variables/name/{_LOCK}{slug(name)}")

    async def _all(self, prefix: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        offset = 0
        while True:
            body = {"variables": {"name": {"like_": prefix}}, "limit": _PAGE, "offset": offset}
            page = await ask(self._client, "POST", "/variables/filter", body)
            found += [variable for variable in page if variable["name"].startswith(prefix)]
            if len(page) < _PAGE:
                return found
            offset += len(page)


async def read_within(directory: Directory, seconds: float) -> Sequence[WorkerCard] | None:
    """Return all cards, or None when the server does not answer within `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            return await directory.read()
    except (httpx.HTTPError, TimeoutError) as error:
        _log.info("the list of workers cannot be read: %s", str(error) or type(error).__name__)
        return None
