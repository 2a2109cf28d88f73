"""A worker that starts under the name of an earlier one: it takes over from that, unless it lives."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import httpx

from mloc_prefect.errors import DispatchError
from mloc_prefect.worker.identity import Process

if TYPE_CHECKING:
    from mloc_prefect.worker.card import WorkerCard
    from mloc_prefect.worker.directory import Directory
    from mloc_prefect.worker.reaper import Reaper
    from mloc_prefect.worker.view import WorkersView

logger = logging.getLogger("prefect.mloc.worker")

_LOOK_SECONDS = 0.5
_AWAY_SECONDS = 2.0
_BEATS = 2.5  # within so many heartbeats one that cannot be seen is heard, if it lives
_sleep = asyncio.sleep


async def succeed(view: WorkersView, name: str, reaper: Reaper) -> None:
    """Return when nothing is left to do for an earlier process of the worker `name`: done by us, or by others.

    Waits for a Prefect server that is away: our card would hide that of the earlier process, and with it its runs.

    Args:
        view: All workers.
        name: Our id.
        reaper: Takes over for a worker that is gone.

    Raises:
        DispatchError: The earlier process lives.
    """
    before = await _card(view.directory, name)
    if before is None:
        return
    if await _lives(view.directory, before):
        raise DispatchError(
            f"worker {name!r} runs already, as process {before.process.pid}",
            hint="give each worker an MLOC_WORKER_ID of its own, or none",
        )
    # Whoever takes over removes the card at the end; should it be lost meanwhile, we go on in its place.
    while (card := await _card(view.directory, name)) is not None and not await _taken_over(reaper, card):
        await _sleep(_LOOK_SECONDS)


async def _lives(directory: Directory, card: WorkerCard) -> bool:
    if card.process.where == Process.own().where:
        return not card.process.seen_dead()
    await _sleep(_BEATS * card.heartbeat)  # nobody can see it: its heart must be heard
    now = await _card(directory, card.id)
    return now is not None and (now.incarnation, now.beat) != (card.incarnation, card.beat)


async def _card(directory: Directory, name: str) -> WorkerCard | None:
    while True:
        try:
            return next((card for card in await directory.read() if card.id == name), None)
        except httpx.HTTPError as error:
            logger.warning("the worker waits for the Prefect server: %s", str(error) or type(error).__name__)
            await _sleep(_AWAY_SECONDS)


async def _taken_over(reaper: Reaper, card: WorkerCard) -> bool:
    try:
        return await reaper.take_over(card)
    except httpx.HTTPError as error:
        logger.warning("what an earlier process ran is not taken over yet: %s", str(error) or type(error).__name__)
        return False
