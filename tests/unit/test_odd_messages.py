"""Anybody may publish anything on MLOC's channels: those who listen go on."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.bridge import original_hub
from mloc_prefect.bridge.census import take_census
from mloc_prefect.bridge.memory import MemoryPublisher
from mloc_prefect.bridge.original_hub import Hub
from mloc_prefect.bridge.ports import TASK_EVENTS, WORKER_EVENTS
from mloc_prefect.bridge.redis_publish import _object
from mloc_prefect.bridge.stores import memory_stores
from mloc_prefect.errors import StoreError
from mloc_prefect.server import feed as feeds
from mloc_prefect.server.feed import Feed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DONE = {"type": "TASK_SUCCEEDED", "worker_id": "w", "task_id": "t"}


class Breaking(MemoryPublisher):
    """Breaks off when it is told to, or hears nothing at all."""

    def __init__(self, *, closed: Exception | None = None) -> None:
        super().__init__()
        self.closed = closed

    @asynccontextmanager
    async def listen(self, *channels: str) -> AsyncIterator[AsyncIterator[tuple[str, dict[str, Any]]]]:
        if self.closed is not None:
            raise self.closed
        async with super().listen(*channels) as messages:
            yield _until_told(messages)


async def _until_told(messages: AsyncIterator[tuple[str, dict[str, Any]]]) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    async for channel, message in messages:
        if message.get("break"):
            raise RuntimeError("nobody thought of this")
        yield channel, message


def _refuses_odd(then: Any) -> Any:
    def odd(*given: Any) -> Any:
        if given[-1].get("odd"):
            raise RecursionError("too deep")
        return then(*given)

    return odd


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"{", b"[1]", b"null"])
def test_what_is_no_object_is_left_out(data: bytes) -> None:
    assert _object(data) is None


async def test_a_type_that_is_no_text_is_not_counted() -> None:
    stores = memory_stores()
    counting = asyncio.create_task(take_census(stores))
    await asyncio.sleep(0.01)
    for kind in ({"HEARTBEAT": 1}, ["HEARTBEAT"], 7, None, "heartbeat"):
        await stores.publisher.publish(WORKER_EVENTS, {"type": kind})
    await asyncio.sleep(0.01)
    counting.cancel()
    assert await stores.tasks.tally() == {"worker_heartbeats": 1}


# --- those who follow workers of the original protocol ----------------------------------------------------------------


async def test_an_odd_message_of_a_worker_does_not_end_the_listener(
    monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(original_hub, "read_news", _refuses_odd(original_hub.read_news))
    publisher = MemoryPublisher()
    hub = Hub(publisher)
    await hub.listening()
    news = hub.follow("w")
    await publisher.publish(TASK_EVENTS, {"odd": True})
    await publisher.publish(TASK_EVENTS, DONE)
    assert (await asyncio.wait_for(news.get(), 1)).what == "succeeded"
    assert "a message on tasks.events could not be handled" in caplog.text
    await hub.close()


async def test_a_listener_that_ended_is_started_again_by_the_next_task(caplog: Any) -> None:
    publisher = Breaking()
    hub = Hub(publisher)
    await hub.listening()
    news = hub.follow("w")
    await publisher.publish(TASK_EVENTS, {"break": True})
    await asyncio.sleep(0.01)
    assert "nobody thought of this" in caplog.text
    await hub.listening()
    await publisher.publish(TASK_EVENTS, DONE)
    assert (await asyncio.wait_for(news.get(), 1)).what == "succeeded"
    await hub.close()


@pytest.mark.parametrize("error", [StoreError("away"), RuntimeError("nobody thought of this")])
async def test_who_cannot_listen_is_told_why_and_the_next_one_tries_again(error: Exception) -> None:
    publisher = Breaking(closed=error)
    hub = Hub(publisher)
    for caught in await asyncio.gather(hub.listening(), hub.listening(), return_exceptions=True):
        assert caught is error
    publisher.closed = None
    await hub.listening()
    await hub.close()


# --- those who hear all messages --------------------------------------------------------------------------------------


async def test_an_odd_message_is_left_out_of_the_feed(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(feeds, "mask_document", _refuses_odd(feeds.mask_document))
    publisher = MemoryPublisher()
    feed = Feed(publisher)
    await feed.open()
    with feed.reader(None) as messages:
        await publisher.publish(TASK_EVENTS, {"odd": True})
        await publisher.publish(TASK_EVENTS, DONE)
        assert (await asyncio.wait_for(anext(messages), 1)).message == DONE
    assert "could not be handled" in caplog.text
    await feed.close()


async def test_readers_of_a_feed_that_ended_end_and_go_on_where_they_were(caplog: Any) -> None:
    publisher = Breaking()
    feed = Feed(publisher)
    await feed.open()
    with feed.reader(None) as messages:
        for message in (DONE, {"n": 1}, {"break": True}):
            await publisher.publish(TASK_EVENTS, message)
        async with asyncio.timeout(1):
            heard = [heard async for heard in messages]
    assert [h.message for h in heard] == [DONE, {"n": 1}]
    assert "nobody thought of this" in caplog.text
    with feed.reader(None) as messages, pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(anext(messages), 1)
    await feed.open()
    await publisher.publish(TASK_EVENTS, {"n": 2})
    with feed.reader(feed.id_of(heard[0])) as messages:
        assert [(await asyncio.wait_for(anext(messages), 1)).message for _ in range(2)] == [{"n": 1}, {"n": 2}]
    await feed.close()


@pytest.mark.parametrize("number", ["9" * 5000, "²", "٣", "-1", ""])
async def test_a_last_id_may_be_anything(number: str) -> None:
    publisher = MemoryPublisher()
    feed = Feed(publisher)
    await feed.open()
    await publisher.publish(TASK_EVENTS, {"n": 0})
    await asyncio.sleep(0)
    with feed.reader(f"{feed._name}-{number}") as messages:
        await publisher.publish(TASK_EVENTS, {"n": 1})
        assert (await asyncio.wait_for(anext(messages), 1)).message == {"n": 1}
    await feed.close()
