"""The workers for people: the Prefect artifact `mloc-workers`, and the list of `mloc workers`."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.utilities.urls import url_for

from mloc_prefect.cluster.membership import VariableMembership
from mloc_prefect.cluster.mloc_registration import hardware
from mloc_prefect.errors import reason
from mloc_prefect.flow.reports.run_artifacts import table
from mloc_prefect.prefect_ext.requests import ask

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prefect.client.orchestration import PrefectClient

    from mloc_prefect.cluster.cluster_view import ClusterView
    from mloc_prefect.cluster.worker_card import WorkerCard

logger = logging.getLogger("prefect.mloc.worker")

KEY = "mloc-workers"
_HEAD = ("worker", "pool", "state", "hardware", "tags", "leases", "warm models", "runs")
_EVERY_SECONDS = 2.0


class WorkerArtifact:
    """Publishes the artifact: one page for the whole site, updated in place.

    Args:
        client: Open client.
    """

    def __init__(self, client: PrefectClient) -> None:
        self._client = client
        self._shown = ""

    async def show(self, cards: Iterable[WorkerCard]) -> None:
        """Publish these workers, unless nothing changed.

        Raises:
            httpx.HTTPError: The server does not answer.
        """
        text = roster_markdown(cards)
        if text == self._shown:
            return
        latest = {
            "artifacts": {"key": {"any_": [KEY]}},
            "limit": 1,
        }  # two workers that started together created one each
        found = await ask(self._client, "POST", "/artifacts/latest/filter", latest)
        if not found:
            create = ArtifactCreate(key=KEY, type="markdown", description="Workers of MLOC", data=text)
            await self._client.create_artifact(create)
        else:
            body = ArtifactUpdate(data=text).model_dump(mode="json", exclude_unset=True)
            await ask(self._client, "PATCH", f"/artifacts/{found[0]['latest_id']}", body)
        self._shown = text

    def forget(self) -> None:
        """Forget what was published last: another worker publishes now."""
        self._shown = ""


async def publish_workers(client: PrefectClient, view: ClusterView, name: str, every: float) -> None:
    """Keep the artifact up to date while this worker is the first of the live ones, and when the last one leaves.

    Args:
        client: Open client.
        view: All workers; its owner refreshes it.
        name: Our id.
        every: Seconds between updates.
    """
    roster = WorkerArtifact(client)
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
    """Return all workers in the form of the endpoint's `GET /workers`, from their cards in Prefect.

    Raises:
        httpx.HTTPError: The server does not answer.
    """
    return [_record(card, seen) for card, seen in await VariableMembership(client).read_dated()]


def roster_markdown(cards: Iterable[WorkerCard]) -> str:
    """Return the page: a table of the workers, links to their runs."""
    rows = [_row(card) for card in cards]
    return "\n".join(["# Workers", "", *(table(_HEAD, rows) if rows else ["No worker is online."])])


async def _shown(roster: WorkerArtifact, cards: Sequence[WorkerCard]) -> None:
    try:
        await roster.show(cards)
    except httpx.HTTPError as error:
        logger.info("could not update the list of workers in Prefect: %s", reason(error))


def _row(card: WorkerCard) -> tuple[str, ...]:
    runs = [_link(run) for run in card.runs]
    leases = [f"{', '.join(busy.devices)}: {busy.holder}" for busy in card.leases]
    roots_only = card.role == "coordinator"
    return (
        card.id,
        card.pool,
        _state(card),
        "root runs only" if roots_only else str(card.inventory),
        ", ".join(card.inventory.tags),
        "<br>".join(leases),
        "<br>".join(card.models),
        ", ".join(runs),
    )


def _state(card: WorkerCard) -> str:
    if card.problem or card.draining:
        return card.problem or "takes no more"
    return "at work" if card.runs or card.leases else "idle"


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
