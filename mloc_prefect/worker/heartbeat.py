"""The heartbeat of a worker: a thread with a loop of its own, so that nothing in the worker's loop can hold it up."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from mloc_prefect.errors import DispatchError
from mloc_prefect.worker.directory import VariableDirectory
from mloc_prefect.worker.registration import Registration

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.worker.card import WorkerCard

logger = logging.getLogger("prefect.mloc.worker")

_MIN_SECONDS = 0.25
_MIN_ANSWER_SECONDS = 5.0
_LEAVE_SECONDS = 5.0


class Heartbeat:
    """Publishes a worker's card every `heartbeat_seconds`, and soon after it changed.

    Args:
        settings: For the times, and for Redis if there is one.
        card: What to publish first.
        on_lost: Called, in the thread, with the card's incarnation when others took this worker for dead: its lock
            is there. The next card must have another incarnation.

    Attributes:
        switched_off: The worker is to take no new work; said in the registry, where there is one.
    """

    def __init__(self, settings: MlocSettings, card: WorkerCard, on_lost: Callable[[str], None]) -> None:
        self._settings = settings
        self._card = card
        self._on_lost = on_lost
        self.switched_off = False
        self._lost: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed: asyncio.Event | None = None
        self._stopping = False
        self._started = threading.Event()
        context = contextvars.copy_context()  # the thread must see the same Prefect settings
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="mloc-heartbeat", daemon=True)

    @property
    def card(self) -> WorkerCard:
        """What is published."""
        return self._card

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()
        self._started.wait()

    def update(self, card: WorkerCard) -> None:
        """Publish another card soon; from any thread."""
        self._card = card
        self._wake()

    async def stop(self) -> None:
        """Take the card away and end the thread."""
        self._stopping = True
        self._wake()
        await asyncio.to_thread(self._thread.join, _LEAVE_SECONDS)

    def _wake(self) -> None:
        if self._loop is not None and self._changed is not None:
            try:
                self._loop.call_soon_threadsafe(self._changed.set)
            except RuntimeError:  # the thread has ended
                logger.debug("the heartbeat has ended")

    def _run(self) -> None:
        try:
            asyncio.run(self._beat_for_ever())
        finally:
            self._started.set()

    async def _beat_for_ever(self) -> None:
        self._loop, self._changed = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        async with AsyncExitStack() as stack:
            # Prefect's client would retry for a minute, and later beats would wait for it.
            stack.enter_context(temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}))
            client = await stack.enter_async_context(get_client())
            directory = VariableDirectory(client)
            registration = await self._registration(stack)
            beat = 0
            while not self._stopping:
                beat += 1
                began = time.monotonic()
                await self._beat(directory, registration, beat)
                await self._pause(began)
            await self._leave(directory, registration)

    async def _pause(self, began: float) -> None:
        """Wait for the next beat: until it is due, or something changed and the last one is not only just over."""
        assert self._changed is not None
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + self._settings.heartbeat_seconds):
                await self._changed.wait()
                if not self._stopping:
                    await asyncio.sleep(max(0.0, began + _MIN_SECONDS - time.monotonic()))
        except TimeoutError:
            return
        self._changed.clear()

    async def _registration(self, stack: AsyncExitStack) -> Registration | None:
        url = self._settings.redis_url
        if url is None or self._card.role != "worker":
            return None
        from mloc_prefect.bridge.stores import open_stores

        stores = open_stores(url)
        stack.push_async_callback(stores.close)
        return Registration(stores.workers, max(self._settings.heartbeat_ttl, 4 * self._settings.heartbeat_seconds))

    async def _beat(self, directory: VariableDirectory, registration: Registration | None, beat: int) -> None:
        card = replace(self._card, beat=beat)
        try:
            async with asyncio.timeout(max(self._settings.heartbeat_ttl / 2, _MIN_ANSWER_SECONDS)):
                if not await self._given_up(directory, card):
                    await directory.publish(card)
        except (httpx.HTTPError, TimeoutError) as error:
            logger.info("heartbeat: the Prefect server does not answer (%s)", str(error) or type(error).__name__)
        if registration is not None:
            try:
                await registration.beat(card)
                self.switched_off = registration.switched_off
            except DispatchError as error:
                logger.warning("heartbeat: %s", error)

    async def _given_up(self, directory: VariableDirectory, card: WorkerCard) -> bool:
        """Return whether others gave this process of the worker up, as after a pause of all of it; tell it once."""
        if self._lost != card.incarnation:
            if not await directory.locked(lock_name(card)):
                return False
            self._lost = card.incarnation
            logger.warning("others took this worker for dead and took over what it ran; it drops that and goes on")
            self._on_lost(card.incarnation)
        return True

    async def _leave(self, directory: VariableDirectory, registration: Registration | None) -> None:
        try:
            await directory.remove(self._card.id)
        except (httpx.HTTPError, TimeoutError) as error:
            logger.info("the worker's card stays, the Prefect server does not answer (%s)", error)
        if registration is not None:
            try:
                await registration.leave(self._card)
            except DispatchError as error:
                logger.info("the worker stays in the registry until its time is over: %s", error)


def lock_name(card: WorkerCard) -> str:
    """Return the name of the lock that whoever takes over from this process of the worker must get."""
    return f"{card.id}.{card.incarnation}"
