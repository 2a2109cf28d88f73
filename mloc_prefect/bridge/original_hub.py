"""One subscription for all tasks that a process has at workers of the original protocol."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from mloc_prefect.bridge.odd import contained
from mloc_prefect.bridge.original_messages import read_news
from mloc_prefect.bridge.ports import TASK_EVENTS, WORKER_EVENTS
from mloc_prefect.errors import StoreError

if TYPE_CHECKING:
    from mloc_prefect.bridge.original_messages import News
    from mloc_prefect.bridge.ports import Publisher

_log = logging.getLogger(__name__)
_AGAIN_SECONDS = 0.5


class Hub:
    """Hears what workers say and hands it to those who follow a worker.

    Args:
        publisher: Whose channels to hear.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._followers: dict[str, list[asyncio.Queue[News]]] = {}
        self._listener: asyncio.Task[None] | None = None
        self._heard = asyncio.Event()
        self._listening = asyncio.Event()

    async def listening(self) -> None:
        """Return once the channels are heard; what is said from then on is not missed.

        Raises:
            StoreError: There is no connection.
        """
        if self._listener is None or self._listener.done():
            self._listening.clear()
            self._listener = asyncio.create_task(self._listen(), name="original workers")
            self._listener.add_done_callback(_tell)
        listener, listening = self._listener, asyncio.create_task(self._listening.wait())
        try:
            await asyncio.wait({listening, listener}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            listening.cancel()
        if listener.done():
            await listener  # raises what ended it; the next caller tries again

    async def close(self) -> None:
        """Stop to listen."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
            self._listener = None

    def follow(self, worker_id: str) -> asyncio.Queue[News]:
        """Return a queue that gets what is heard of one worker until `leave`."""
        queue: asyncio.Queue[News] = asyncio.Queue()
        self._followers.setdefault(worker_id, []).append(queue)
        return queue

    def leave(self, worker_id: str, queue: asyncio.Queue[News], *, free: bool) -> None:
        """End a `follow`; harmless when it was ended before. `free`: somebody else may take the worker now."""
        followers = self._followers.get(worker_id, [])
        if queue in followers:
            followers.remove(queue)
        if not followers:
            self._followers.pop(worker_id, None)
        if free:
            self._wake()

    @property
    def followed(self) -> set[str]:
        """Workers that somebody in this process follows, and so has, or is about to take or leave."""
        return set(self._followers)

    async def wait(self, seconds: float) -> None:
        """Return when some worker became free, or after `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._heard.wait()

    async def _listen(self) -> None:
        while True:
            try:
                async with self._publisher.listen(TASK_EVENTS, WORKER_EVENTS) as messages:
                    self._listening.set()
                    async for channel, message in messages:
                        with contained(f"a message on {channel}"):
                            news = read_news(channel, message)
                            if news is not None:
                                self._hand_out(news)
            except StoreError as error:
                if not self._listening.is_set():
                    raise
                _log.warning("workers of the original protocol are not heard: %s", error)
                await asyncio.sleep(_AGAIN_SECONDS)

    def _hand_out(self, news: News) -> None:
        for queue in self._followers.get(news.worker_id, ()):
            queue.put_nowait(news)
        if news.what != "began":
            self._wake()

    def _wake(self) -> None:
        self._heard.set()
        self._heard = asyncio.Event()


def _tell(listener: asyncio.Task[None]) -> None:
    """Look at what ended a listener, also when no caller waits for it."""
    error = None if listener.cancelled() else listener.exception()
    if error is not None and not isinstance(error, StoreError):  # that one is the caller's
        _log.error("workers of the original protocol are not heard until the next task: %r", error)
