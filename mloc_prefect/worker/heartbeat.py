"""The heartbeat of a worker: a thread with a loop of its own, so that nothing in the worker's loop can hold it up."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from mloc_prefect.errors import DispatchError, MlocError
from mloc_prefect.worker.directory import VariableDirectory
from mloc_prefect.worker.registration import Registration

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.worker.card import WorkerCard
    from mloc_prefect.worker.directory import Directory

logger = logging.getLogger("prefect.mloc.worker")

_MIN_SECONDS = 0.25
_MIN_ANSWER_SECONDS = 5.0
_LEAVE_SECONDS = 5.0
_FIRST_SECONDS = 3.0


class Heartbeat:
    """Publishes a worker's card every `heartbeat_seconds`, and soon after it changed.

    Args:
        settings: For the times, and for Redis if there is one.
        card: What to publish first.
        on_lost: Called, in the thread, with the card's incarnation when others took this worker for dead: its lock
            is there, or its card is not. The next card must have another incarnation.
        on_ended: Called, in the thread, when it ends without `stop`: others will take this worker for dead.

    Attributes:
        switched_off: The worker is to take no new work; said in the registry, where there is one.
    """

    def __init__(
        self,
        settings: MlocSettings,
        card: WorkerCard,
        on_lost: Callable[[str], None],
        on_ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._card = card
        self._on_lost, self._on_ended = on_lost, on_ended
        self.switched_off = False
        self._lost: str | None = None
        self._renewed: tuple[str, float, float] | None = None  # incarnation, and when, by two clocks
        self._met: dict[str, str] = {}
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

    def sure_of(self, incarnation: str) -> bool:
        """Whether nobody can have taken this process of the worker for dead yet; from any thread."""
        renewed, patience = self._renewed, self._card.patience(self._settings.heartbeat_ttl)
        return renewed is not None and renewed[0] == incarnation and _age(renewed) < patience / 2

    def start(self) -> None:
        """Begin to beat; returns after the first beat, unless that takes long: who waits for us may look us up then."""
        self._thread.start()
        self._started.wait(_FIRST_SECONDS)

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
        except Exception:  # boundary: nobody waits for this thread
            logger.exception("the heartbeat broke down")
        finally:
            self._started.set()
            if not self._stopping:
                self._on_ended()

    async def _beat_for_ever(self) -> None:
        self._loop, self._changed = asyncio.get_running_loop(), asyncio.Event()
        async with AsyncExitStack() as stack:
            # Prefect's client would retry for a minute, and later beats would wait for it.
            stack.enter_context(temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}))
            client = await stack.enter_async_context(get_client())
            directory = VariableDirectory(client)
            registration: Registration | None = None
            beat = 0
            while not self._stopping:
                beat += 1
                began = time.monotonic()
                card = replace(self._card, beat=beat)
                async with self._step("the Prefect server"):
                    await self._beat(directory, card)
                async with self._step("the registry"):
                    registration = registration or await self._registration(stack)
                    await self._register(registration, card)
                self._started.set()
                await self._pause(began)
            await self._leave(directory, registration)

    @asynccontextmanager
    async def _step(self, where: str) -> AsyncIterator[None]:
        """Keep whatever goes wrong in one part of a beat from the other part and from the next beat.

        A proxy may answer with a page instead of JSON, and anything else that nobody thought of would end the thread:
        others would take over what runs here, beside us. Said once until it is over.
        """
        met = ""
        try:
            yield
        except (httpx.HTTPError, TimeoutError, MlocError) as error:
            met = str(error) or type(error).__name__
            logger.log(self._level(where, met), "heartbeat: %s does not answer (%s)", where, met)
        except Exception as error:  # boundary, see above
            met = f"{type(error).__name__}: {error}"
            logger.log(self._level(where, met), "heartbeat: %s: %s", where, met, exc_info=error)
        self._met[where] = met

    def _level(self, where: str, met: str) -> int:
        return logging.DEBUG if self._met.get(where) == met else logging.WARNING

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

    async def _beat(self, directory: Directory, card: WorkerCard) -> None:
        async with asyncio.timeout(max(self._settings.heartbeat_ttl / 2, _MIN_ANSWER_SECONDS)):
            if not await self._given_up(directory, card):
                await directory.publish(card)
                self._renewed = card.incarnation, time.time(), time.monotonic()

    async def _register(self, registration: Registration | None, card: WorkerCard) -> None:
        if registration is not None:
            await registration.beat(card)
            self.switched_off = registration.switched_off

    async def _given_up(self, directory: Directory, card: WorkerCard) -> bool:
        """Return whether others gave this process of the worker up, as after a pause of all of it; tell it once."""
        if self._lost != card.incarnation:
            if not await directory.locked(lock_name(card)) and not await self._replaced(directory, card):
                return False
            self._lost = card.incarnation
            logger.warning("others took this worker for dead and took over what it ran; it drops that and goes on")
            self._on_lost(card.incarnation)
        return True

    async def _replaced(self, directory: Directory, card: WorkerCard) -> bool:
        """Return whether its card went, or became another's, while this process did not renew it.

        Locks are forgotten after a while, and a machine may sleep for longer. Without a pause of ours a missing card
        means nothing: somebody deleted it by hand, and what runs here was not taken over.
        """
        renewed = self._renewed or ("", 0.0, 0.0)
        if renewed[0] != card.incarnation or _age(renewed) < self._settings.heartbeat_ttl:
            return False
        found = await directory.card(card.id)
        return found is None or found.incarnation != card.incarnation

    async def _leave(self, directory: Directory, registration: Registration | None) -> None:
        try:
            await directory.remove(self._card.id)
        except (httpx.HTTPError, TimeoutError) as error:
            logger.info("the worker's card stays, the Prefect server does not answer (%s)", error)
        if registration is not None:
            try:
                await registration.leave(self._card)
            except DispatchError as error:
                logger.info("the worker stays in the registry until its time is over: %s", error)


def _age(renewed: tuple[str, float, float]) -> float:
    """Return the seconds since then; the second clock stands still while a machine sleeps, the first may be set."""
    _, at, clock = renewed
    return max(time.time() - at, time.monotonic() - clock)


def lock_name(card: WorkerCard) -> str:
    """Return the name of the lock that whoever takes over from this process of the worker must get."""
    return f"{card.id}.{card.incarnation}"
