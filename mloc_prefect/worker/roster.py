"""The workers as people see them: the Prefect artifact `mloc-workers`, and a list for `mloc workers`."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.utilities.urls import url_for

from mloc_prefect.orchestrate.api import ask
from mloc_prefect.orchestrate.report import table
from mloc_prefect.worker.directory import VariableDirectory
from mloc_prefect.worker.registration import hardware

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prefect.client.orchestration import PrefectClient

    from mloc_prefect.worker.card import WorkerCard
    from mloc_prefect.worker.view import WorkersView

logger = logging.getLogger("prefect.mloc.worker")

KEY = "mloc-workers"
_HEAD = ("worker", "pool", "state", "hardware", "tags", "leases", "warm models", "runs")
_EVERY_SECONDS = 2.0


class Roster:
    """Keeps the artifact; one page for the whole site, changed in place.

    Args:
        client: Open client.
    """

    def __init__(self, client: PrefectClient) -> None:
        self._client = client
        self._shown = ""

    async def show(self, cards: Iterable[WorkerCard]) -> None:
        """Show these workers, unless it is what was shown last.

        Raises:
            httpx.HTTPError: The server does not answer.
        """
        text = roster_markdown(cards)
        if text == self._shown:
            return
        latest = {"artifacts": {"key": {"any_": [KEY]}}, "limit": 1}  # two that started at once made one each
        found = await ask(self._client, "POST", "/artifacts/latest/filter", latest)
        if not found:
            create = ArtifactCreate(key=KEY, type="markdown", description="Workers of MLOC", data=text)
            await self._client.create_artifact(create)
        else:
            body = ArtifactUpdate(data=text).model_dump(mode="json", exclude_unset=True)
            await ask(self._client, "PATCH", f"/artifacts/{found[0]['latest_id']}", body)
        self._shown = text

    def forget(self) -> None:
        """Take what was shown last for old: others show it now."""
        self._shown = ""


async def show_for_ever(client: PrefectClient, view: WorkersView, name: str, every: float) -> None:
    """Keep the artifact true as long as we are the first of the workers that are there; when we leave, too.

    Args:
        client: Open client.
        view: All workers; somebody else looks.
        name: Our id.
        every: Seconds between looks.
    """
    roster = Roster(client)
    try:
        while True:
            await asyncio.sleep(max(every, _EVERY_SECONDS))
            if view.live[0].id == name:
                await _shown(roster, view.live)
            else:
                roster.forget()
    finally:
        if not view.others:
            await asyncio.shield(_shown(roster, ()))


async def listed(client: PrefectClient) -> list[dict[str, Any]]:
    """Return all workers in the form of the endpoint's `GET /workers`, from what they tell each other in Prefect.

    Raises:
        httpx.HTTPError: The server does not answer.
    """
    return [_record(card, seen) for card, seen in await VariableDirectory(client).read_dated()]


def roster_markdown(cards: Iterable[WorkerCard]) -> str:
    """Return the page: a table of the workers, links to their runs."""
    rows = [_row(card) for card in cards]
    return "\n".join(["# Workers", "", *(table(_HEAD, rows) if rows else ["No worker is online."])])


async def _shown(roster: Roster, cards: Sequence[WorkerCard]) -> None:
    try:
        await roster.show(cards)
    except httpx.HTTPError as error:
        logger.info("the list of workers in Prefect is not renewed: %s", str(error) or type(error).__name__)


def _row(card: WorkerCard) -> tuple[str, ...]:
    runs = [_link(run) for run in card.runs]
    leases = [f"{', '.join(busy.devices)}: {busy.holder}" for busy in card.leases]
    roots_only = card.role == "coordinator"
    return (
        card.id,
        card.pool,
        "takes no more" if card.draining else "at work" if card.runs or card.leases else "idle",
        "root runs only" if roots_only else str(card.inventory),
        ", ".join(card.inventory.tags),
        "<br>".join(leases),
        "<br>".join(card.models),
        ", ".join(runs),
    )


def _link(run: str) -> str:
    page = url_for("flow-run", obj_id=UUID(run))
    return f"[{run[:8]}]({page})" if page else run


def _record(card: WorkerCard, seen: str) -> dict[str, Any]:
    age = datetime.now(UTC) - datetime.fromisoformat(seen)
    return {
        "worker_id": card.id,
        "status": "RUNNING" if card.runs or card.leases else "IDLE",
        "pid": card.process.pid,
        "hardware": hardware(card),
        "tags": list(card.inventory.tags),
        "last_seen": seen,
        "stale": card.process.seen_dead() or age > timedelta(seconds=max(30.0, 4 * card.heartbeat)),
        "elastic_disabled": card.draining,
        "cached_models": list(card.models),
        "at_work": card.at_work,
    }
