"""Heartbeat of a worker: a thread with its own event loop, so that nothing in the worker's loop can delay it."""

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

from mloc_prefect.cluster.membership import VariableMembership
from mloc_prefect.cluster.mloc_registration import MlocRegistration
from mloc_prefect.errors import DispatchError, MlocError, reason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mloc_prefect.cluster.membership import Membership
    from mloc_prefect.cluster.worker_card import WorkerCard
    from mloc_prefect.settings import MlocSettings

logger = logging.getLogger("prefect.mloc.worker")

_MIN_SECONDS = 0.25
_MIN_ANSWER_SECONDS = 5.0
_LEAVE_SECONDS = 5.0
_FIRST_SECONDS = 3.0
_CONFIRM_SECONDS = 0.1


class Heartbeat:
    """Publishes a worker's card every `heartbeat_seconds`, and soon after it changed.

    Args:
        settings: For the times, and for Redis if there is one.
        card: What to publish first.
        on_lost: Called, in the thread, with the card's incarnation when others declared this worker lost: its lock
            exists, or its card does not. The next card must have another incarnation.
        on_ended: Called, in the thread, when it ends without `stop`: others will declare this worker lost.

    Attributes:
        switched_off: The worker is to take no new work, according to the registry, where there is one.
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
        self._reported: dict[str, str] = {}
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

    def sure_of(self, incarnation: str, *, share: float = 0.5) -> bool:
        """Return whether no other worker can have declared this process lost yet; from any thread.

        Args:
            incarnation: What it was known as.
            share: Share of the patience of others within which its last heartbeat must have been.
        """
        renewed, patience = self._renewed, self._card.patience(self._settings.heartbeat_ttl)
        return renewed is not None and renewed[0] == incarnation and _age(renewed) < share * patience

    async def confirmed(self, incarnation: str) -> bool:
        """Return whether this process still is what others know as `incarnation`, as soon as that is certain.

        After a pause it is not, until a heartbeat has found no takeover; that waits for a server that is away.
        """
        while not self.sure_of(incarnation):
            if self._stopping or self._lost == incarnation or self._card.incarnation != incarnation:
                return False
            self._wake()
            await asyncio.sleep(_CONFIRM_SECONDS)
        return True

    def start(self) -> None:
        """Start; returns after the first beat, unless that takes long, so that callers find the worker registered."""
        self._thread.start()
        self._started.wait(_FIRST_SECONDS)

    def update(self, card: WorkerCard) -> None:
        """Publish another card soon; from any thread."""
        self._card = card
        self._wake()

    async def stop(self) -> None:
        """Remove the card and end the thread."""
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
        except Exception:  # boundary: no caller waits for this thread
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
            membership = VariableMembership(client)
            registration: MlocRegistration | None = None
            beat = 0
            while not self._stopping:
                beat += 1
                began = time.monotonic()
                card = replace(self._card, beat=beat)
                async with self._step("the Prefect server"):
                    await self._beat(membership, card)
                async with self._step("the registry"):
                    registration = registration or await self._registration(stack)
                    await self._register(registration, card)
                self._started.set()
                await self._pause(began)
            await self._leave(membership, registration)

    @asynccontextmanager
    async def _step(self, where: str) -> AsyncIterator[None]:
        """Isolate failures: an error in one part of a beat must not stop the other part or the next beat.

        A proxy may answer with a page instead of JSON. If an unforeseen error ended the thread, other workers would
        take over runs that still run here. Each problem is logged once until it is over.
        """
        problem = ""
        try:
            yield
        except (httpx.HTTPError, TimeoutError, MlocError) as error:
            problem = reason(error)
            logger.log(self._level(where, problem), "heartbeat: %s does not answer (%s)", where, problem)
        except Exception as error:  # boundary, see above
            problem = f"{type(error).__name__}: {error}"
            logger.log(self._level(where, problem), "heartbeat: %s: %s", where, problem, exc_info=error)
        self._reported[where] = problem

    def _level(self, where: str, problem: str) -> int:
        return logging.DEBUG if self._reported.get(where) == problem else logging.WARNING

    async def _pause(self, began: float) -> None:
        """Wait for the next beat: until it is due, or the card changed and the last beat was not just now."""
        assert self._changed is not None
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + self._settings.heartbeat_seconds):
                await self._changed.wait()
                if not self._stopping:
                    await asyncio.sleep(max(0.0, began + _MIN_SECONDS - time.monotonic()))
        except TimeoutError:
            return
        self._changed.clear()

    async def _registration(self, stack: AsyncExitStack) -> MlocRegistration | None:
        url = self._settings.redis_url
        if url is None or self._card.role != "worker":
            return None
        from mloc_prefect.store.backends import open_stores

        stores = open_stores(url)
        stack.push_async_callback(stores.close)
        return MlocRegistration(stores.workers, max(self._settings.heartbeat_ttl, 4 * self._settings.heartbeat_seconds))

    async def _beat(self, membership: Membership, card: WorkerCard) -> None:
        async with asyncio.timeout(max(self._settings.heartbeat_ttl / 2, _MIN_ANSWER_SECONDS)):
            if not await self._declared_lost(membership, card):
                await membership.publish(card)
                self._renewed = card.incarnation, time.time(), time.monotonic()

    async def _register(self, registration: MlocRegistration | None, card: WorkerCard) -> None:
        if registration is not None:
            await registration.beat(card)
            self.switched_off = registration.switched_off

    async def _declared_lost(self, membership: Membership, card: WorkerCard) -> bool:
        """Return whether others declared this process lost, e.g. after it was paused; reports that once."""
        if self._lost != card.incarnation:
            if not await membership.locked(lock_name(card)) and not await self._replaced(membership, card):
                return False
            self._lost = card.incarnation
            logger.warning("this worker was declared lost and its runs were reassigned; dropping them and continuing")
            self._on_lost(card.incarnation)
        return True

    async def _replaced(self, membership: Membership, card: WorkerCard) -> bool:
        """Return whether the card was removed, or became another process's, while this process did not renew it.

        Locks are forgotten after a while, and a machine may sleep for longer. Without such a pause a missing card means
        nothing: a person deleted it, and no other worker took over.
        """
        renewed = self._renewed or ("", 0.0, 0.0)
        if renewed[0] != card.incarnation or _age(renewed) < self._settings.heartbeat_ttl:
            return False
        found = await membership.card(card.id)
        return found is None or found.incarnation != card.incarnation

    async def _leave(self, membership: Membership, registration: MlocRegistration | None) -> None:
        try:
            await membership.remove(self._card.id)
        except (httpx.HTTPError, TimeoutError) as error:
            logger.info("could not remove the worker's card, the Prefect server does not answer (%s)", error)
        if registration is not None:
            try:
                await registration.leave(self._card)
            except DispatchError as error:
                logger.info("could not remove the worker from the registry, its entry will expire: %s", error)


def _age(renewed: tuple[str, float, float]) -> float:
    """Return the seconds since then; the second clock stops while a machine sleeps, the first may be set."""
    _, at, clock = renewed
    return max(time.time() - at, time.monotonic() - clock)


def lock_name(card: WorkerCard) -> str:
    """Return the name of the lock for taking over from this process of the worker."""
    return f"{card.id}.{card.incarnation}"
