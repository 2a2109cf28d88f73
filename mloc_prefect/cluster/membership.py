"""Membership: each worker publishes its card in a Prefect Variable, so that no Redis is needed.

Clocks of different machines are not compared: a worker lives as long as its `beat` grows, by the clock of the reader.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

import httpx

from mloc_prefect.cluster.identity import slug
from mloc_prefect.cluster.worker_card import WorkerCard
from mloc_prefect.errors import reason
from mloc_prefect.prefect_ext.requests import ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect.client.orchestration import PrefectClient

_log = logging.getLogger(__name__)

_CARD, _LOCK = "mloc_worker_", "mloc_reaped_"
_PAGE = 200


class Membership(Protocol):
    """Cards of all workers, and locks that exactly one of them gets."""

    async def publish(self, card: WorkerCard) -> None:
        """Store a worker's card, or renew it."""

    async def create(self, card: WorkerCard) -> bool:
        """Store a worker's card unless it has one; of several callers exactly one gets True."""

    async def remove(self, worker_id: str) -> None:
        """Remove a worker's card; nothing happens when there is none."""

    async def card(self, worker_id: str) -> WorkerCard | None:
        """Return one worker's card, or None when there is none."""

    async def read(self) -> Sequence[WorkerCard]:
        """Return all cards, in order of ids."""

    async def lock(self, name: str, holder: str) -> bool:
        """Take the lock `name` permanently; returns False when it was taken before."""

    async def locked(self, name: str) -> bool:
        """Return whether the lock `name` is taken."""

    async def forget_locks(self, older: float) -> None:
        """Forget all locks that were taken more than `older` seconds ago (coarsely: clocks may differ)."""

    async def unlock(self, name: str) -> None:
        """Forget a lock."""


class MemoryMembership:
    """A membership for one process: the in-memory twin."""

    def __init__(self) -> None:
        self._cards: dict[str, str] = {}
        self._locks: dict[str, str] = {}

    async def publish(self, card: WorkerCard) -> None:
        """See `Membership`."""
        self._cards[card.id] = card.to_json()

    async def create(self, card: WorkerCard) -> bool:
        """See `Membership`."""
        if card.id in self._cards:
            return False
        await self.publish(card)
        return True

    async def remove(self, worker_id: str) -> None:
        """See `Membership`."""
        self._cards.pop(worker_id, None)

    async def card(self, worker_id: str) -> WorkerCard | None:
        """See `Membership`."""
        text = self._cards.get(worker_id)
        return None if text is None else WorkerCard.from_json(text)

    async def read(self) -> Sequence[WorkerCard]:
        """See `Membership`."""
        return [WorkerCard.from_json(text) for _, text in sorted(self._cards.items())]

    async def lock(self, name: str, holder: str) -> bool:
        """See `Membership`."""
        if slug(name) in self._locks:
            return False
        self._locks[slug(name)] = holder
        return True

    async def locked(self, name: str) -> bool:
        """See `Membership`."""
        return slug(name) in self._locks

    async def forget_locks(self, older: float) -> None:
        """See `Membership`; these go with the process."""

    async def unlock(self, name: str) -> None:
        """See `Membership`."""
        self._locks.pop(slug(name), None)


class VariableMembership:
    """A membership in Prefect Variables `mloc_worker_<slug>`.

    Args:
        client: Open client. Errors of the connection (`httpx.HTTPError`) reach the caller.
    """

    def __init__(self, client: PrefectClient) -> None:
        self._client = client

    async def publish(self, card: WorkerCard) -> None:
        """See `Membership`."""
        name, value = _CARD + slug(card.id), card.to_json()
        if await ask(self._client, "PATCH", f"/variables/name/{name}", {"value": value}) is None:
            await self.create(card)

    async def create(self, card: WorkerCard) -> bool:
        """See `Membership`."""
        body = {"name": _CARD + slug(card.id), "value": card.to_json(), "tags": ["mloc"]}
        return await ask(self._client, "POST", "/variables/", body) is not None

    async def remove(self, worker_id: str) -> None:
        """See `Membership`."""
        await ask(self._client, "DELETE", f"/variables/name/{_CARD}{slug(worker_id)}")

    async def card(self, worker_id: str) -> WorkerCard | None:
        """See `Membership`."""
        variable = await ask(self._client, "GET", f"/variables/name/{_CARD}{slug(worker_id)}")
        return None if variable is None else WorkerCard.from_json(str(variable["value"]))

    async def read(self) -> Sequence[WorkerCard]:
        """See `Membership`."""
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
        """See `Membership`."""
        body = {"name": _LOCK + slug(name), "value": holder, "tags": ["mloc"]}
        return await ask(self._client, "POST", "/variables/", body) is not None

    async def locked(self, name: str) -> bool:
        """See `Membership`."""
        return await ask(self._client, "GET", f"/variables/name/{_LOCK}{slug(name)}") is not None

    async def forget_locks(self, older: float) -> None:
        """See `Membership`."""
        oldest = datetime.now(UTC) - timedelta(seconds=older)
        for variable in await self._all(_LOCK):
            if datetime.fromisoformat(variable["created"]) < oldest:
                await ask(self._client, "DELETE", f"/variables/name/{variable['name']}")

    async def unlock(self, name: str) -> None:
        """See `Membership`."""
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


async def read_within(membership: Membership, seconds: float) -> Sequence[WorkerCard] | None:
    """Return all cards, or None when the server does not answer within `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            return await membership.read()
    except (httpx.HTTPError, TimeoutError) as error:
        _log.info("the list of workers cannot be read: %s", reason(error))
        return None
